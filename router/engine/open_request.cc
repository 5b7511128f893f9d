#include "router/engine/open_request.h"

namespace penstock::router {

wire::Submit SubmitNow(const OpenRequest& request, std::chrono::steady_clock::time_point now) {
  wire::Submit submit = request.submit;
  if (!request.deadline) return submit;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(*request.deadline - now).count();
  submit.set_timeout_ms(left == 0 ? -1 : left);  // 0 would be no deadline
  return submit;
}

DeltaFate FateOf(uint32_t num_received, uint32_t first, uint32_t count, wire::EndReason end) {
  // An error ends the request wherever it stands.
  if (end == wire::END_ERROR) return DeltaFate::kTake;
  if (first > num_received) return DeltaFate::kGap;
  const uint64_t last = uint64_t{first} + count;
  if (last > num_received) return DeltaFate::kTake;
  // An end that comes again without new ids still ends; one of before ids we have is stale.
  return last == num_received && end != wire::END_NONE ? DeltaFate::kTake : DeltaFate::kStale;
}

}  // namespace penstock::router
