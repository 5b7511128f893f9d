#include "router/engine/open_request.h"

namespace penstock::router {

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
