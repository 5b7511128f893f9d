#include "tools/penstock/bench/engine_transport.h"

#include <unistd.h>

#include <algorithm>
#include <random>
#include <utility>

namespace penstock::bench {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kLeaseInterval(net::kLeaseMs);
constexpr milliseconds kReadyInterval(50);  // while waiting for readiness

// Milliseconds to block for, so that `deadline` is not overslept by more than the clock's grain.
int WaitMs(Clock::time_point deadline) {
  const auto left = std::chrono::ceil<milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, net::kLeaseMs));
}

}  // namespace

absl::StatusOr<std::unique_ptr<EngineTransport>> EngineTransport::Connect(
    const std::string& address) {
  ASSIGN_OR_RETURN(const net::EngineEndpoints endpoints, net::ParseEngineAddress(address));
  auto context = std::make_unique<zmq::context_t>(1);
  std::string router_id = fmt::format("bench-{}-{:08x}", getpid(), std::random_device()());
  ASSIGN_OR_RETURN(net::RequestSender sender, net::RequestSender::Connect(*context, endpoints));
  ASSIGN_OR_RETURN(net::DeltaReceiver receiver,
                   net::DeltaReceiver::Connect(*context, endpoints, router_id));
  return std::unique_ptr<EngineTransport>(new EngineTransport(
      std::move(context), std::move(sender), std::move(receiver), std::move(router_id)));
}

EngineTransport::EngineTransport(std::unique_ptr<zmq::context_t> context, net::RequestSender sender,
                                 net::DeltaReceiver receiver, std::string router_id)
    : context_(std::move(context)),
      sender_(std::move(sender)),
      receiver_(std::move(receiver)),
      router_id_(std::move(router_id)) {}

EngineTransport::~EngineTransport() {
  wire::ToScheduler message;
  message.set_goodbye(true);
  Send(&message).IgnoreError();
}

absl::Status EngineTransport::Send(wire::ToScheduler* message) {
  message->set_router_id(router_id_);
  return sender_.Send(message);
}

absl::Status EngineTransport::SendLease() {
  wire::ToScheduler message;
  wire::Lease& lease = *message.mutable_lease();
  lease.set_sequence(++lease_sequence_);
  for (const auto& [id, request] : open_) {
    lease.add_ids(id);
    lease.add_num_received(request.num_received);
  }
  next_lease_ = Clock::now() + kLeaseInterval;
  return Send(&message);
}

absl::Status EngineTransport::WaitUntilReady(
    const std::function<absl::Status(const std::string&)>& waiting) {
  std::vector<Event> none;
  while (!was_ready_) {
    // Often, since a status that was sent before our socket was there is lost.
    RETURN_IF_ERROR(SendLease());
    const Clock::time_point until = Clock::now() + kReadyInterval;
    while (!was_ready_ && Clock::now() < until) RETURN_IF_ERROR(Poll(until, &none));
    if (was_ready_) break;
    if (status_.worker_restarts() > 0) return Unavailable("a worker died while it started");
    const std::string reason = epoch_ == 0 ? "no answer yet" : status_.not_ready_reason();
    RETURN_IF_ERROR(waiting(reason));
  }
  return absl::OkStatus();
}

absl::Status EngineTransport::RefreshStatus() {
  const uint64_t asked = lease_sequence_ + 1;
  RETURN_IF_ERROR(SendLease());
  const Clock::time_point give_up = Clock::now() + std::chrono::seconds(10);
  std::vector<Event> none;
  while (status_.lease_sequence() < asked) {
    if (Clock::now() > give_up) return Unavailable("the engine does not answer");
    RETURN_IF_ERROR(Poll(Clock::now() + kReadyInterval, &none));
  }
  return absl::OkStatus();
}

absl::Status EngineTransport::Start(size_t request, const Prompt& prompt) {
  const uint64_t id = next_id_++;
  wire::Submit& submit = *submits_.add_submit();
  submit.set_id(id);
  submit.set_request_id(fmt::format("bench-{}", id));
  submit.mutable_ids()->Assign(prompt.ids.begin(), prompt.ids.end());
  submit.set_prompt_len(static_cast<int32_t>(prompt.ids.size()));
  wire::Sampling& sampling = *submit.mutable_sampling();  // greedy; no stop ids
  sampling.set_top_p(1);
  sampling.set_repetition_penalty(1);
  sampling.set_max_tokens(prompt.output_len);
  sampling.set_seed(id);
  sampling.set_num_top_logprobs(-1);
  sampling.set_num_prompt_logprobs(-1);
  open_[id] = {request, 0};
  return absl::OkStatus();
}

absl::Status EngineTransport::Poll(Clock::time_point deadline, std::vector<Event>* events) {
  if (submits_.submit_size() > 0) {
    RETURN_IF_ERROR(Send(&submits_));
    submits_.Clear();
  }
  if (Clock::now() >= next_lease_) RETURN_IF_ERROR(SendLease());
  int wait_ms = WaitMs(std::min(deadline, next_lease_));
  while (true) {
    const absl::Status received = receiver_.Receive(wait_ms, &message_);
    if (absl::IsNotFound(received)) return absl::OkStatus();
    RETURN_IF_ERROR(received);
    RETURN_IF_ERROR(Handle(message_, events));
    wait_ms = 0;  // what else is there already
  }
}

absl::Status EngineTransport::Handle(const wire::ToRouter& message, std::vector<Event>* events) {
  const uint64_t old_epoch = std::exchange(epoch_, message.epoch());
  if (old_epoch != 0 && old_epoch != epoch_) return Aborted("the scheduler was started anew");
  if (message.has_deltas()) RETURN_IF_ERROR(HandleDeltas(message.deltas(), events));
  return message.has_status() ? HandleStatus(message.status()) : absl::OkStatus();
}

absl::Status EngineTransport::HandleDeltas(const wire::Deltas& deltas, std::vector<Event>* events) {
  const Clock::time_point now = Clock::now();
  const int size = deltas.id_size();
  if (deltas.first_size() != size || deltas.count_size() != size ||
      (deltas.end_size() != 0 && deltas.end_size() != size)) {
    return Internal("the engine sent deltas whose columns don't fit together");
  }
  for (int i = 0; i < size; ++i) {
    const auto found = open_.find(deltas.id(i));
    if (found == open_.end()) continue;
    OpenRequest& open = found->second;
    const uint32_t last = deltas.first(i) + deltas.count(i);
    const wire::EndReason end = deltas.end_size() == 0 ? wire::END_NONE : deltas.end(i);
    // A gap, which our next lease has filled; or what came already.
    if (deltas.first(i) > open.num_received) continue;
    const uint32_t fresh = last > open.num_received ? last - open.num_received : 0;
    if (fresh == 0 && end == wire::END_NONE) continue;
    open.num_received += fresh;
    Event event{.request = open.request,
                .at = now,
                .num_tokens = static_cast<int>(fresh),
                .has_output = fresh > 0,
                .end = end != wire::END_NONE};
    if (end == wire::END_ERROR) {
      event.error = Internal("the engine failed the request and gave no reason");
      for (const wire::Extra& extra : deltas.extra()) {
        if (extra.index() != static_cast<uint32_t>(i) || extra.error_code() == 0) continue;
        event.error =
            absl::Status(static_cast<absl::StatusCode>(extra.error_code()), extra.error());
      }
    }
    events->push_back(std::move(event));
    if (end != wire::END_NONE) open_.erase(found);
  }
  return absl::OkStatus();
}

absl::Status EngineTransport::HandleStatus(const wire::Status& status) {
  const bool restarted = was_ready_ && status.worker_restarts() != status_.worker_restarts();
  status_ = status;
  if (restarted) return Aborted("a worker died");
  if (was_ready_ && !status.ready()) {
    return Aborted("the engine is not ready any more: {}", status.not_ready_reason());
  }
  for (const uint64_t id : status.unknown_ids()) {
    if (open_.contains(id)) return Aborted("the engine lost a request");
  }
  was_ready_ = was_ready_ || status.ready();
  return absl::OkStatus();
}

}  // namespace penstock::bench
