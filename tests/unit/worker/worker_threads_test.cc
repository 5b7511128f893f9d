// Worker and scheduler as threads of one process, with the null device: what they share is the
// segment alone, as between processes, but here ThreadSanitizer sees it.
#include <gtest/gtest.h>
#include <unistd.h>

#include <thread>

#include "common/status.h"
#include "kernels/null/null_backend.h"
#include "tests/unit/worker/plan_driver.h"
#include "worker/worker.h"

namespace penstock::worker {
namespace {

// How long a step of the device takes, in microseconds. 0: it is over when its ops have been
// called, by one thread; else it runs on its own and a second thread finishes steps.
class WorkerThreadsTest : public testing::TestWithParam<int> {};

TEST_P(WorkerThreadsTest, PlansInFlightOverManyRounds) {
  const std::string engine = fmt::format("worker-threads-{}", getpid());
  shm::Geometry geometry;
  geometry.num_slots = 4;
  geometry.plan_ring_bytes = 8192;  // small, so that both rings wrap and fill
  geometry.result_ring_bytes = 1 << 16;
  geometry.arena_bytes = 1 << 20;
  auto driver = PlanDriver::Create(engine, geometry);
  ASSERT_TRUE(driver.ok()) << driver.status();
  WorkerOptions options;
  options.engine_id = engine;
  options.device = "null";
  options.null_step_us = GetParam();
  options.max_num_batched_tokens = 64;
  std::atomic<bool> stop{false};
  int exit_code = -1;
  std::thread worker([&] { exit_code = RunWorker(options, stop); });
  ASSERT_TRUE((*driver)->WaitReady(60'000).ok());
  for (uint64_t epoch = 1; epoch <= 3; ++epoch) {
    ASSERT_TRUE((*driver)->Reset().ok());
    // Steps of the last epoch were under way; what they still yield is nobody's.
    auto next_result = [&] {
      auto result = (*driver)->Result(0);
      while (result.ok() && result->header.epoch != epoch) result = (*driver)->Result(0);
      return result;
    };
    DriverRequest request;
    request.ids = {1, 2, 3};
    request.sampling = GreedySampling();
    const uint32_t slot = (*driver)->Add(request, 2000);
    (*driver)->Submit({{slot, 0, 3, shm::kRowSample}});
    constexpr uint32_t kSteps = 1000, kDepth = 16;
    for (uint32_t i = 0; i < kSteps; ++i) {
      (*driver)->Submit({{slot, 3 + i, 1, shm::kRowSample}});
      if (i < kDepth) continue;
      const auto result = next_result();
      ASSERT_TRUE(result.ok()) << result.status();
      ASSERT_EQ(result->header.step, i - kDepth + 1);
      ASSERT_EQ(result->rows.size(), 1u);
      const shm::ResultRow& row = result->rows[0].row;
      EXPECT_EQ(row.position, static_cast<int32_t>(3 + i - kDepth));
      EXPECT_EQ(row.token_id,
                kernels::null::NullToken(static_cast<int32_t>(slot), row.position, 49152));
    }
  }
  stop.store(true);
  (*driver)->segment().header().plan_event.Notify();
  worker.join();
  EXPECT_EQ(exit_code, kExitOk);
}

INSTANTIATE_TEST_SUITE_P(Device, WorkerThreadsTest, testing::Values(0, 20));

}  // namespace
}  // namespace penstock::worker
