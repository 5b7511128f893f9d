#include "router/balance/least_loaded.h"

#include <gtest/gtest.h>

#include <vector>

namespace penstock::router {
namespace {

EngineLoad Load(uint32_t in_flight, uint32_t running, uint32_t waiting, double kv = 0) {
  return {.usable = true,
          .in_flight = in_flight,
          .running = running,
          .waiting = waiting,
          .kv_usage = kv};
}

TEST(LeastLoaded, NoneUsable) {
  EXPECT_FALSE(LeastLoaded({}).has_value());
  const std::vector<EngineLoad> engines(3);
  EXPECT_FALSE(LeastLoaded(engines).has_value());
}

TEST(LeastLoaded, TakesTheFewestRequests) {
  const std::vector<EngineLoad> engines = {Load(5, 5, 0), Load(3, 2, 1), Load(4, 4, 0)};
  EXPECT_EQ(LeastLoaded(engines), 1u);
}

TEST(LeastLoaded, SkipsUnusable) {
  std::vector<EngineLoad> engines = {Load(0, 0, 0), Load(9, 9, 9)};
  engines[0].usable = false;
  EXPECT_EQ(LeastLoaded(engines), 1u);
}

TEST(LeastLoaded, CountsOtherRoutersRequestsAndOwnOnesNotYetReported) {
  const std::vector<EngineLoad> others = {Load(0, 8, 0), Load(2, 2, 0)};
  EXPECT_EQ(LeastLoaded(others), 1u);
  const std::vector<EngineLoad> own = {Load(8, 0, 0), Load(2, 2, 0)};
  EXPECT_EQ(LeastLoaded(own), 1u);
}

TEST(LeastLoaded, TiesGoToLowerKvUsageThenLowerIndex) {
  const std::vector<EngineLoad> kv = {Load(1, 1, 0, 0.5), Load(1, 1, 0, 0.25)};
  EXPECT_EQ(LeastLoaded(kv), 1u);
  const std::vector<EngineLoad> same = {Load(1, 1, 0), Load(1, 1, 0)};
  EXPECT_EQ(LeastLoaded(same), 0u);
}

// A burst that no lease has reported yet still spreads evenly.
TEST(LeastLoaded, SpreadsABurst) {
  std::vector<EngineLoad> engines = {Load(0, 0, 0), Load(0, 0, 0), Load(0, 0, 0)};
  for (int i = 0; i < 30; ++i) ++engines[*LeastLoaded(engines)].in_flight;
  for (const EngineLoad& engine : engines) EXPECT_EQ(engine.in_flight, 10u);
}

}  // namespace
}  // namespace penstock::router
