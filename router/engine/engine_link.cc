#include "router/engine/engine_link.h"

#include <algorithm>
#include <utility>

#include "common/log.h"
#include "router/engine/retry_after.h"

namespace penstock::router {
namespace {

using std::chrono::milliseconds;

// Messages taken before streams are flushed. When the engine is faster than the writers, ids of
// several steps go out as one write; when it is not, each message is flushed by itself.
constexpr int kMaxBatch = 16;

// Whether the columns fit together; a peer's bug must not take the router down.
bool Consistent(const wire::Deltas& deltas) {
  const int size = deltas.id_size();
  if (deltas.first_size() != size || deltas.count_size() != size) return false;
  if (deltas.end_size() != 0 && deltas.end_size() != size) return false;
  uint64_t total = 0;
  for (const uint32_t count : deltas.count()) total += count;
  if (total != static_cast<uint64_t>(deltas.token_ids_size())) return false;
  return std::all_of(deltas.extra().begin(), deltas.extra().end(), [size](const auto& extra) {
    return extra.index() < static_cast<uint32_t>(size);
  });
}

}  // namespace

absl::StatusOr<std::unique_ptr<EngineLink>> EngineLink::Connect(zmq::context_t& context,
                                                                const std::string& address,
                                                                LinkOptions options, Mover move) {
  ASSIGN_OR_RETURN(const net::EngineEndpoints endpoints, net::ParseEngineAddress(address));
  ASSIGN_OR_RETURN(net::RequestSender sender, net::RequestSender::Connect(context, endpoints));
  ASSIGN_OR_RETURN(net::DeltaReceiver receiver,
                   net::DeltaReceiver::Connect(context, endpoints, options.router_id));
  return std::unique_ptr<EngineLink>(new EngineLink(address, std::move(options), std::move(move),
                                                    std::move(sender), std::move(receiver)));
}

EngineLink::EngineLink(const std::string& address, LinkOptions options, Mover move,
                       net::RequestSender sender, net::DeltaReceiver receiver)
    : address_(address),
      options_(std::move(options)),
      move_(std::move(move)),
      receiver_(std::move(receiver)),
      sender_(std::move(sender)),
      last_heard_(Clock::now()),
      usable_until_(last_heard_) {
  state_.address = address_;
  state_.reason = fmt::format("engine {} has not answered yet", address_);
  thread_ = std::thread([this] { Run(); });
}

EngineLink::~EngineLink() { Stop(Unavailable("the server ends")); }

absl::Status EngineLink::Submit(std::span<const std::shared_ptr<OpenRequest>> requests) {
  wire::ToScheduler message;
  message.set_router_id(options_.router_id);
  const Clock::time_point now = Clock::now();
  for (const auto& request : requests) *message.add_submit() = SubmitNow(*request, now);
  std::lock_guard lock(mutex_);
  if (stopped_) return Unavailable("the server ends");
  RETURN_IF_ERROR(sender_.Send(&message));
  for (const auto& request : requests) {
    request->first_lease = next_lease_sequence_;
    table_[request->submit.id()] = request;
  }
  return absl::OkStatus();
}

void EngineLink::Cancel(std::span<const uint64_t> ids) {
  wire::ToScheduler message;
  message.set_router_id(options_.router_id);
  std::lock_guard lock(mutex_);
  for (const uint64_t id : ids) {
    if (table_.erase(id) != 0) message.mutable_cancel()->add_ids(id);
  }
  if (!message.has_cancel()) return;
  sender_.Send(&message).IgnoreError();  // the next lease doesn't name it: that cancels too
}

EngineState EngineLink::State() const {
  std::lock_guard lock(mutex_);
  EngineState state = state_;
  state.in_flight = static_cast<uint32_t>(table_.size());
  return state;
}

void EngineLink::Stop(const absl::Status& status) {
  stop_ = true;
  if (thread_.joinable()) thread_.join();
  {
    std::lock_guard lock(mutex_);
    if (stopped_) return;
    stopped_ = true;
    wire::ToScheduler message;
    message.set_router_id(options_.router_id);
    message.set_goodbye(true);
    sender_.Send(&message).IgnoreError();
  }
  FailIf([](const OpenRequest&) { return true; }, status);
}

void EngineLink::Run() {
  while (!stop_) {
    const auto wait = std::chrono::ceil<milliseconds>(next_lease_ - Clock::now()).count();
    ReceiveBatch(static_cast<int>(std::clamp<int64_t>(wait, 0, options_.lease_ms)));
    Flush();
    Tick(Clock::now());
  }
}

void EngineLink::ReceiveBatch(int wait_ms) {
  wire::ToRouter message;
  for (int i = 0; i < kMaxBatch && !stop_; ++i) {
    const absl::Status status = receiver_.Receive(i == 0 ? wait_ms : 0, &message);
    if (status.ok()) {
      refused_reason_.clear();
      Handle(message);
    } else if (absl::IsNotFound(status)) {
      return;
    } else if (absl::IsCancelled(status)) {
      stop_ = true;  // the ZeroMQ context ends
    } else if (Message(status) != refused_reason_) {
      refused_reason_ = Message(status);
      spdlog::error("msg=\"engine's message refused\" engine={} reason=\"{}\"", address_,
                    refused_reason_);
    }
  }
}

void EngineLink::Handle(const wire::ToRouter& message) {
  last_heard_ = Clock::now();
  uint64_t old_epoch;
  {
    std::lock_guard lock(mutex_);
    old_epoch = std::exchange(state_.epoch, message.epoch());
  }
  if (old_epoch != message.epoch()) {
    spdlog::info("msg=\"engine {}\" engine={} id={} epoch={}",
                 old_epoch == 0 ? "connected" : "restarted", address_, message.engine_id(),
                 message.epoch());
    if (old_epoch != 0) lease_now_ = true;
  }
  if (message.has_deltas()) HandleDeltas(message.deltas());
  if (message.has_status()) HandleStatus(message.status());
}

void EngineLink::HandleDeltas(const wire::Deltas& deltas) {
  if (!Consistent(deltas)) {
    spdlog::error("msg=\"deltas whose columns don't fit together\" engine={}", address_);
    lease_now_ = true;
    return;
  }
  const int size = deltas.id_size();
  batch_.assign(size, nullptr);
  {
    std::lock_guard lock(mutex_);
    for (int i = 0; i < size; ++i) {
      const auto it = table_.find(deltas.id(i));
      if (it != table_.end()) batch_[i] = it->second;
    }
  }
  std::vector<const wire::Extra*> extras(deltas.extra_size() == 0 ? 0 : size);
  for (const wire::Extra& extra : deltas.extra()) extras[extra.index()] = &extra;
  const int32_t* ids = deltas.token_ids().data();
  for (int i = 0; i < size; ids += deltas.count(i), ++i) {
    // Ended already: before this message, or in a row of it (it may have the ids of two steps).
    if (batch_[i] == nullptr || batch_[i]->done) continue;
    const wire::Extra* extra = extras.empty() ? nullptr : extras[i];
    if (HandleDelta(deltas, i, ids, extra, batch_[i].get())) {
      batch_[i]->done = true;
      done_.push_back(deltas.id(i));
    }
    if (!std::exchange(batch_[i]->dirty, true)) dirty_.push_back(std::move(batch_[i]));
  }
  if (done_.empty()) return;
  std::lock_guard lock(mutex_);
  for (const uint64_t id : done_) table_.erase(id);
  done_.clear();
}

bool EngineLink::HandleDelta(const wire::Deltas& deltas, int index, const int32_t* ids,
                             const wire::Extra* extra, OpenRequest* request) {
  const uint32_t count = deltas.count(index);
  const uint32_t first = deltas.first(index);
  const uint32_t received = request->num_received();
  const wire::EndReason end = deltas.end_size() == 0 ? wire::END_NONE : deltas.end(index);
  if (end == wire::END_ERROR) {
    const auto code =
        static_cast<absl::StatusCode>(extra == nullptr ? 0 : static_cast<int>(extra->error_code()));
    const bool named = extra != nullptr && code != absl::StatusCode::kOk;
    absl::Status error =
        named ? absl::Status(code, extra->error())
              : Internal("engine {} failed the request and gave no reason", address_);
    if (named && extra->retry_after_s() != 0) SetRetryAfter(extra->retry_after_s(), &error);
    request->sink->OnFailure(error);
    return true;
  }
  const DeltaFate fate = FateOf(received, first, count, end);
  if (fate == DeltaFate::kGap) {
    lease_now_ = true;  // the engine answers a lease with what is missing
    std::lock_guard lock(mutex_);
    ++state_.gaps;
  }
  if (fate != DeltaFate::kTake) return false;
  const uint32_t skip = received - first;
  TokenDelta delta{.ids = {ids + skip, count - skip},
                   .end = end,
                   .extra = extra,
                   .skip = static_cast<int>(skip)};
  request->submit.mutable_ids()->Add(delta.ids.begin(), delta.ids.end());
  // They come once, with the first delta; a resubmission needn't ask for them again.
  request->submit.mutable_sampling()->set_num_prompt_logprobs(-1);
  const SinkAction action = request->sink->OnTokens(delta);
  if (end != wire::END_NONE) return true;
  if (action == SinkAction::kStop) stopped_here_.push_back(request->submit.id());
  return action == SinkAction::kStop;
}

void EngineLink::Flush() {
  if (!stopped_here_.empty()) {
    wire::ToScheduler message;
    message.set_router_id(options_.router_id);
    message.mutable_cancel()->mutable_ids()->Add(stopped_here_.begin(), stopped_here_.end());
    stopped_here_.clear();
    std::lock_guard lock(mutex_);
    sender_.Send(&message).IgnoreError();  // the next lease cancels too
  }
  for (const std::shared_ptr<OpenRequest>& request : dirty_) {
    request->dirty = false;
    request->sink->Flush();
  }
  dirty_.clear();
}

void EngineLink::HandleStatus(const wire::Status& status) {
  {
    std::lock_guard lock(mutex_);
    state_.status = status;
  }
  if (status.unknown_ids_size() != 0) Resubmit(status);
}

void EngineLink::Resubmit(const wire::Status& status) {
  int count = 0;
  const Clock::time_point now = Clock::now();
  std::lock_guard lock(mutex_);
  for (const uint64_t id : status.unknown_ids()) {
    const auto it = table_.find(id);
    // An answer to a lease of before our (re)submission says nothing about it.
    if (it == table_.end() || status.lease_sequence() < it->second->first_lease) continue;
    wire::ToScheduler message;
    message.set_router_id(options_.router_id);
    *message.add_submit() = SubmitNow(*it->second, now);
    if (!sender_.Send(&message).ok()) break;  // the next lease finds it again
    it->second->first_lease = next_lease_sequence_;
    ++state_.resubmissions;
    ++count;
  }
  if (count != 0) {
    spdlog::warn("msg=\"requests submitted again\" engine={} count={}", address_, count);
  }
}

std::string EngineLink::WhyNotUsable(const wire::Status& status, bool heard,
                                     milliseconds silent) const {
  if (!refused_reason_.empty()) return fmt::format("engine {}: {}", address_, refused_reason_);
  if (!heard) {
    return fmt::format("engine {} has not answered yet: is its scheduler running?", address_);
  }
  if (silent.count() > options_.silent_ms) {
    return fmt::format("engine {} has been silent for more than {} ms", address_,
                       options_.silent_ms);
  }
  if (status.draining()) return fmt::format("engine {} drains", address_);
  if (status.ready()) return "";
  return fmt::format("engine {} is not ready: {}", address_, status.not_ready_reason());
}

void EngineLink::Tick(Clock::time_point now) {
  const auto silent = std::chrono::duration_cast<milliseconds>(now - last_heard_);
  wire::Status status;
  bool heard;
  {
    std::lock_guard lock(mutex_);
    heard = state_.epoch != 0;
    // Of the status only what readiness needs: this runs for every batch.
    status.set_ready(state_.status.ready());
    status.set_draining(state_.status.draining());
    if (!status.ready()) status.set_not_ready_reason(state_.status.not_ready_reason());
  }
  const std::string reason = WhyNotUsable(status, heard, silent);
  const bool lost_lately = was_usable_ && now - usable_until_ <= milliseconds(options_.grace_ms);
  if (reason.empty()) {
    SetUsable(true, false, "");
    was_usable_ = true;
  } else {
    SetUsable(false, lost_lately && refused_reason_.empty() && !status.draining(), reason);
  }
  // An engine that drains takes no requests, but goes on with those it has.
  if (reason.empty() || (heard && status.draining() && silent.count() <= options_.silent_ms)) {
    usable_until_ = now;
  }
  if (lease_now_ || now >= next_lease_) {
    lease_now_ = false;
    SendLease();
    // Ask more often while something is amiss, so that streams go on soon after it is mended.
    next_lease_ = now + milliseconds(usable_until_ == now ? options_.lease_ms
                                                          : std::max(1, options_.lease_ms / 4));
    RescueRequests(now);
  }
}

void EngineLink::SetUsable(bool usable, bool returning, std::string reason) {
  std::unique_lock lock(mutex_);
  state_.returning = returning;
  if (state_.usable == usable && state_.reason == reason) return;
  const bool changed = std::exchange(state_.usable, usable) != usable;
  state_.reason = std::move(reason);
  if (usable) {
    spdlog::info("msg=\"engine ready\" engine={} epoch={} max_model_len={}", address_, state_.epoch,
                 state_.status.max_model_len());
  } else {  // further reasons are progress: "loads weights, 40%"
    spdlog::log(changed ? spdlog::level::warn : spdlog::level::debug,
                "msg=\"engine not usable\" engine={} reason=\"{}\"", address_, state_.reason);
  }
  lock.unlock();
  if (options_.on_change) options_.on_change();
}

void EngineLink::SendLease() {
  wire::ToScheduler message;
  message.set_router_id(options_.router_id);
  wire::Lease* lease = message.mutable_lease();
  std::lock_guard lock(mutex_);
  lease->set_sequence(next_lease_sequence_++);
  lease->mutable_ids()->Reserve(static_cast<int>(table_.size()));
  lease->mutable_num_received()->Reserve(static_cast<int>(table_.size()));
  for (const auto& [id, request] : table_) {
    lease->add_ids(id);
    lease->add_num_received(request->num_received());
  }
  sender_.Send(&message).IgnoreError();  // another follows soon
}

void EngineLink::RescueRequests(Clock::time_point now) {
  if (usable_until_ == now) return;
  const auto late = [now](const OpenRequest& r) { return r.deadline && *r.deadline <= now; };
  FailIf(late, DeadlineExceeded("the request's time was up while its engine was not usable"));
  const auto lost = std::chrono::duration_cast<milliseconds>(now - usable_until_);
  if (lost.count() <= options_.silent_ms) return;
  std::vector<std::shared_ptr<OpenRequest>> requests;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [id, request] : table_) requests.push_back(request);
  }
  std::vector<uint64_t> moved;
  for (const std::shared_ptr<OpenRequest>& request : requests) {
    if (!move_(request)) break;  // no other engine: the rest can't move either
    moved.push_back(request->submit.id());
  }
  if (!moved.empty()) {
    spdlog::warn("msg=\"requests moved to another engine\" engine={} count={}", address_,
                 moved.size());
    std::lock_guard lock(mutex_);
    // Not cancelled here: should the engine come back, leases that don't name them do it.
    for (const uint64_t id : moved) table_.erase(id);
  }
  if (lost.count() > options_.timeout_ms) {
    FailIf([](const OpenRequest&) { return true; },
           Unavailable("the engine that worked on this request was lost and did not come back "
                       "within {} s: {}",
                       options_.timeout_ms / 1000, State().reason));
  }
}

void EngineLink::FailIf(const std::function<bool(const OpenRequest&)>& which,
                        const absl::Status& status) {
  std::vector<std::shared_ptr<OpenRequest>> requests;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [id, request] : table_) {
      if (which(*request)) requests.push_back(request);
    }
    for (const auto& request : requests) table_.erase(request->submit.id());
  }
  if (requests.empty()) return;
  spdlog::error("msg=\"requests ended\" engine={} count={} reason=\"{}\"", address_,
                requests.size(), Message(status));
  for (const auto& request : requests) {
    request->sink->OnFailure(status);
    request->sink->Flush();
  }
}

}  // namespace penstock::router
