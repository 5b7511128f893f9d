// EngineLoop's dealings with requests and routers.
#include <algorithm>

#include "common/log.h"
#include "scheduler/engine_loop.h"

namespace penstock::scheduler {
namespace {

constexpr int64_t kMaxTimeoutMs = int64_t{365} * 24 * 3600 * 1000;  // so that sums do not overflow

}  // namespace

void EngineLoop::HandleMessages() {
  router_link_->Take(&inbox_);
  if (inbox_.empty()) return;
  const int64_t now_ns = shm::MonotonicNs();
  for (const wire::ToScheduler& message : inbox_) {
    ++num_messages_;
    Router& router = routers_.Get(message.router_id(), now_ns);
    for (const wire::Submit& submit : message.submit()) HandleSubmit(router, submit);
    for (uint64_t id : message.cancel().ids()) {
      const auto found = router.requests.find(id);
      if (found != router.requests.end()) Cancel(*found->second, "cancelled");
    }
    if (message.has_lease()) HandleLease(router, message.lease());
    if (message.goodbye()) {
      spdlog::info("msg=\"router said goodbye\" router={}", router.id);
      ReleaseRouter(router);
    }
  }
}

absl::Status EngineLoop::Admissible(const wire::Submit& submit, int num_outputs) const {
  RETURN_IF_ERROR(ValidateSubmit(submit));
  if (submit.timeout_ms() < 0) {
    return DeadlineExceeded("the request's deadline had passed {} ms before it came here",
                            -std::max(submit.timeout_ms(), -kMaxTimeoutMs));
  }
  if (draining_) return Unavailable("engine {} is shutting down", options_.engine_id);
  // A stream that has begun is not turned away.
  const auto priority = static_cast<uint32_t>(submit.priority());
  if (num_outputs == 0 &&
      batch_.queue().IsFull(priority, submit.tenant(),
                            options_.max_queued_requests + batch_.num_free_slots())) {
    return ResourceExhausted(
        "{} requests go before it already: try again later (--max-queued-requests)",
        batch_.queue().NumAhead(priority));
  }
  return absl::OkStatus();
}

void EngineLoop::HandleSubmit(Router& router, const wire::Submit& submit) {
  // A duplicate: the router submitted it twice because two of its leases crossed our answers.
  if (router.requests.contains(submit.id())) return;
  const bool has_outputs = submit.prompt_len() > 0 && submit.prompt_len() < submit.ids_size();
  const int num_outputs = has_outputs ? submit.ids_size() - submit.prompt_len() : 0;
  if (absl::Status status = Admissible(submit, num_outputs); !status.ok()) {
    if (options_.log_requests) {
      spdlog::info("msg=\"request refused\" request={} reason=\"{}\"", submit.request_id(),
                   Message(status));
    }
    const uint32_t retry_after_s = absl::IsResourceExhausted(status)
                                       ? drain_rate_.SecondsFor(batch_.queue().NumAhead(
                                             static_cast<uint32_t>(submit.priority())))
                                       : 0;
    AddError(router, submit.id(), num_outputs, status, retry_after_s);
    return;
  }
  std::unique_ptr<Request>& request = router.requests[submit.id()];
  request = MakeRequest(submit);
  request->router = &router;
  request->message = num_messages_;
  request->lease_mark = request->num_outputs();
  request->submitted_ns = shm::MonotonicNs();
  if (submit.timeout_ms() > 0) {
    request->deadline_ns =
        request->submitted_ns + std::min(submit.timeout_ms(), kMaxTimeoutMs) * 1'000'000;
    deadlines_.emplace(request->deadline_ns, request.get());
  }
  batch_.Enqueue(request.get(), submit);
  // Before the ranks have said what they loaded, it waits to be checked: BeginServing does.
  if (workers_.state() == WorkerLink::State::kServing) Validate(*request);
}

// Ends a request that the model as loaded cannot serve.
void EngineLoop::Validate(Request& request) {
  if (absl::Status status = ValidateRequest(request, workers_.model(), batch_.arena_bytes());
      !status.ok()) {
    Fail(request, status);
  } else if (request.ids.size() >= LengthLimit(request, workers_.model())) {
    AddDelta(request, request.num_outputs(), 0, wire::END_LENGTH);
    End(request, wire::END_LENGTH);
  }
}

void EngineLoop::HandleLease(Router& router, const wire::Lease& lease) {
  // A router's messages come in order: what came before this one and is not named in it, the router
  // has given up. What came with it may have been added after the lease was written.
  const int num_named = std::min(lease.ids_size(), lease.num_received_size());
  for (int i = 0; i < num_named; ++i) {
    const auto found = router.requests.find(lease.ids(i));
    if (found == router.requests.end()) {
      router.unknown_ids.push_back(lease.ids(i));
      continue;
    }
    Request& request = *found->second;
    request.message = num_messages_;
    // Ids of the last moments are still on their way. What was sent before the lease before this
    // one and has not come since, is lost.
    const uint32_t num_outputs = request.num_outputs();
    const uint32_t due = router.lost_sends ? num_outputs : request.lease_mark;
    const uint32_t num_received = lease.num_received(i);
    if (num_received < due) {
      AddDelta(request, num_received, num_outputs - num_received, wire::END_NONE);
    }
    request.lease_mark = num_outputs;
  }
  std::vector<Request*> given_up;
  for (const auto& [id, request] : router.requests) {
    if (request->message != num_messages_) given_up.push_back(request.get());
  }
  for (Request* request : given_up) Cancel(*request, "not in the router's lease");
  router.lost_sends = false;
  router.status_due = true;
  router.lease_sequence = lease.sequence();
}

void EngineLoop::ExpireRouters() {
  const int64_t oldest_ns = shm::MonotonicNs() - options_.lease_timeout_ms * 1'000'000;
  std::vector<Router*> expired;
  for (const auto& [id, router] : routers_.all()) {
    if (router->last_heard_ns <= oldest_ns) expired.push_back(router.get());
  }
  for (Router* router : expired) {
    spdlog::warn("msg=\"router is gone\" router={} requests={} silent_ms={}", router->id,
                 router->requests.size(), options_.lease_timeout_ms);
    ReleaseRouter(*router);
  }
}

void EngineLoop::ExpireRequests() {
  const int64_t now_ns = shm::MonotonicNs();
  while (!deadlines_.empty() && deadlines_.begin()->first <= now_ns) {
    Request& request = *deadlines_.begin()->second;
    Fail(request,
         DeadlineExceeded("the request's deadline passed {}",
                          request.was_admitted ? fmt::format("after {} ids", request.num_outputs())
                                               : "while it waited to be admitted"));
  }
}

void EngineLoop::ReleaseRouter(Router& router) {
  for (const auto& [id, request] : router.requests) {
    batch_.Remove(request.get());
    deadlines_.erase({request->deadline_ns, request.get()});
  }
  routers_.Erase(std::string(router.id));
}

void EngineLoop::Cancel(Request& request, const char* why) {
  batch_.Remove(&request);
  Forget(request, why);
}

void EngineLoop::End(Request& request, wire::EndReason reason) {
  batch_.LearnLength(request);
  batch_.Remove(&request);
  Forget(request, reason == wire::END_STOP ? "stop" : "length");
}

void EngineLoop::Fail(Request& request, const absl::Status& error) {
  AddError(*request.router, request.id, request.num_outputs(), error);
  batch_.Remove(&request);
  Forget(request, Message(error));
}

void EngineLoop::Forget(Request& request, std::string_view outcome) {
  if (options_.log_requests) {
    spdlog::info(
        "msg=\"request ended\" request={} outcome=\"{}\" prompt={} cached={} output={} "
        "preemptions={} seconds={:.3f}",
        request.request_id, outcome, request.prompt_len, request.cached_tokens,
        request.num_outputs(), request.num_preemptions,
        1e-9 * (shm::MonotonicNs() - request.submitted_ns));
  }
  deadlines_.erase({request.deadline_ns, &request});
  const uint64_t id = request.id;
  request.router->requests.erase(id);
}

void EngineLoop::FailAll(const absl::Status& error) {
  for (const auto& [id, router] : routers_.all()) {
    while (!router->requests.empty()) Fail(*router->requests.begin()->second, error);
  }
}

void EngineLoop::NoteReadiness() {
  const bool hangs =
      completed_step_ + 1 < next_step_ &&
      shm::MonotonicNs() - published_ns_[(completed_step_ + 1) % kMaxInFlight] >= kStepTimeoutNs;
  const bool ready = workers_.state() == WorkerLink::State::kServing && !hangs;
  if (ready == told_ready_ && draining_ == told_draining_) return;
  told_ready_ = ready;
  told_draining_ = draining_;
  for (const auto& [id, router] : routers_.all()) router->status_due = true;
  if (hangs) spdlog::error("msg=\"a step hangs\" step={}", completed_step_ + 1);
}

void EngineLoop::FlushRouters() {
  wire::Status status;
  if (routers_.AnyStatusDue()) {
    status.set_ready(told_ready_);
    if (!told_ready_) {
      const std::string reason = workers_.NotReadyReason();
      status.set_not_ready_reason(reason.empty() ? "the workers do not answer" : reason);
    }
    status.set_draining(draining_);
    if (workers_.state() == WorkerLink::State::kServing) {
      const ModelFacts& model = workers_.model();
      status.set_max_model_len(model.max_model_len);
      status.set_vocab_size(model.vocab_size);
      status.set_num_pages(model.num_pages);
      status.set_page_size(model.page_size);
    }
    status.set_num_running(static_cast<uint32_t>(batch_.num_running()));
    status.set_num_waiting(static_cast<uint32_t>(batch_.num_waiting()));
    status.set_kv_cache_usage(batch_.PageUsage());
    status.set_num_preemptions(batch_.num_preemptions());
    status.set_prefix_queries(batch_.prefix_stats().queries);
    status.set_prefix_hits(batch_.prefix_stats().hits);
    status.set_worker_restarts(num_restarts_);
    status.set_device_idle_ratio(idle_ratio_);
  }
  routers_.Flush(status, [this](const std::string& router, wire::ToRouter* message) {
    return router_link_->Send(router, message);
  });
}

}  // namespace penstock::scheduler
