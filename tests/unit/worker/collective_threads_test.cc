// The threaded twin of collective_test: ThreadSanitizer cannot see across processes.
#include <gtest/gtest.h>
#include <unistd.h>

#include <thread>

#include "tests/unit/worker/collective_rank.h"

namespace penstock::worker {
namespace {

TEST(CollectiveThreadsTest, EveryRankGetsTheSameBits) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  constexpr int kRanks = 3;
  const std::string engine = fmt::format("collective-threads-{}", getpid());
  const auto segment = shm::Segment::CreateOrAdopt(engine, CollectiveGeometry(kRanks));
  ASSERT_TRUE(segment.ok()) << segment.status();
  std::vector<absl::Status> statuses(kRanks);
  std::vector<std::thread> threads;
  threads.reserve(kRanks);
  for (int rank = 0; rank < kRanks; ++rank) {
    threads.emplace_back(
        [&, rank] { statuses[rank] = RunCollectives(engine, rank, seed, 3, 100); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& status : statuses) EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(shm::Segment::Remove(engine).ok());
}

}  // namespace
}  // namespace penstock::worker
