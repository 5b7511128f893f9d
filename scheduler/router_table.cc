#include "scheduler/router_table.h"

#include <algorithm>

#include "common/log.h"

namespace penstock::scheduler {
namespace {

void AddRow(Router& router, uint64_t id, uint32_t first, uint32_t count, wire::EndReason end) {
  wire::Deltas& deltas = *router.message.mutable_deltas();
  deltas.add_id(id);
  deltas.add_first(first);
  deltas.add_count(count);
  router.ends.push_back(end);
  router.any_end = router.any_end || end != wire::END_NONE;
}

// Of the row that was added last.
wire::Extra& AddExtra(Router& router) {
  wire::Deltas& deltas = *router.message.mutable_deltas();
  wire::Extra& extra = *deltas.add_extra();
  extra.set_index(static_cast<uint32_t>(deltas.id_size() - 1));
  return extra;
}

void AddLogprobs(Request& request, uint32_t first, uint32_t count, wire::Extra* extra) {
  const LogprobLog& log = *request.logprobs;
  if (first == request.first_output) {
    extra->mutable_prompt_logprobs()->Assign(log.prompt.begin(), log.prompt.end());
    request.wants_prompt_logprobs = false;
  }
  for (uint32_t i = 0; i < count && first + i >= request.first_output; ++i) {
    const size_t index = first + i - request.first_output;
    if (index < log.outputs.size()) *extra->add_logprobs() = log.outputs[index];
  }
}

}  // namespace

void AddDelta(Request& request, uint32_t first, uint32_t count, wire::EndReason end) {
  Router& router = *request.router;
  AddRow(router, request.id, first, count, end);
  wire::Deltas& deltas = *router.message.mutable_deltas();
  const int32_t* ids = request.ids.data() + request.prompt_len + first;
  for (uint32_t i = 0; i < count; ++i) deltas.add_token_ids(ids[i]);
  if (count == 0) return;
  // With the first id of this life: if it is lost, it comes again with that.
  const bool tells_cached = first == request.first_output && request.cached_tokens > 0;
  if (request.logprobs == nullptr && !tells_cached) return;
  wire::Extra& extra = AddExtra(router);
  if (tells_cached) extra.set_cached_tokens(request.cached_tokens);
  if (request.logprobs != nullptr) AddLogprobs(request, first, count, &extra);
}

void AddError(Router& router, uint64_t id, uint32_t num_outputs, const absl::Status& error,
              uint32_t retry_after_s) {
  AddRow(router, id, num_outputs, 0, wire::END_ERROR);
  wire::Extra& extra = AddExtra(router);
  extra.set_error_code(static_cast<uint32_t>(error.code()));
  extra.set_error(Message(error));
  if (retry_after_s > 0) extra.set_retry_after_s(retry_after_s);
}

RouterTable::RouterTable(std::string engine_id, uint64_t process_epoch)
    : engine_id_(std::move(engine_id)), process_epoch_(process_epoch) {}

Router& RouterTable::Get(const std::string& id, int64_t now_ns) {
  std::unique_ptr<Router>& router = routers_[id];
  if (router == nullptr) {
    router = std::make_unique<Router>();
    router->id = id;
    router->message.set_epoch(process_epoch_);
    router->message.set_engine_id(engine_id_);
    spdlog::info("msg=\"router came\" router={}", id);
  }
  router->last_heard_ns = now_ns;
  return *router;
}

bool RouterTable::AnyStatusDue() const {
  return std::any_of(routers_.begin(), routers_.end(),
                     [](const auto& entry) { return entry.second->status_due; });
}

bool RouterTable::FinishDeltas(Router& router) {
  if (router.ends.empty()) return false;
  if (router.any_end) {
    auto* ends = router.message.mutable_deltas()->mutable_end();
    for (wire::EndReason end : router.ends) ends->Add(end);
  }
  return true;
}

void RouterTable::ResetDeltas(Router& router) {
  if (router.ends.empty()) return;
  router.message.mutable_deltas()->Clear();  // the columns keep their memory
  router.ends.clear();
  router.any_end = false;
}

wire::ToRouter RouterTable::MakeStatus(Router& router, const wire::Status& status) const {
  wire::ToRouter message;
  message.set_epoch(process_epoch_);
  message.set_engine_id(engine_id_);
  *message.mutable_status() = status;
  message.mutable_status()->set_lease_sequence(router.lease_sequence);
  message.mutable_status()->mutable_unknown_ids()->Assign(router.unknown_ids.begin(),
                                                          router.unknown_ids.end());
  router.lease_sequence = 0;
  router.unknown_ids.clear();
  return message;
}

}  // namespace penstock::scheduler
