// Which engine takes a new request. Pure: no state, no clock, any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

namespace penstock::router {

struct EngineLoad {
  bool usable = false;     // ready, answering, not draining
  uint32_t in_flight = 0;  // this router's open requests there, known at once
  uint32_t running = 0;    // of all routers, as the engine last said
  uint32_t waiting = 0;    // likewise
  double kv_usage = 0;     // 0..1, likewise
};

// Index of the usable engine with the fewest requests: the engine's own count lags by up to a
// lease, ours doesn't see other routers, so the larger of the two counts. Ties: the lower KV usage,
// then the lower index. Null if none is usable.
std::optional<size_t> LeastLoaded(std::span<const EngineLoad> engines);

}  // namespace penstock::router
