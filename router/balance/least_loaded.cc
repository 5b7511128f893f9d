#include "router/balance/least_loaded.h"

#include <algorithm>
#include <tuple>

namespace penstock::router {

std::optional<size_t> LeastLoaded(std::span<const EngineLoad> engines) {
  const auto cost = [&](size_t i) {
    const EngineLoad& engine = engines[i];
    return std::tuple(std::max(engine.in_flight, engine.running + engine.waiting), engine.kv_usage);
  };
  std::optional<size_t> best;
  for (size_t i = 0; i < engines.size(); ++i) {
    if (!engines[i].usable) continue;
    if (!best || cost(i) < cost(*best)) best = i;
  }
  return best;
}

}  // namespace penstock::router
