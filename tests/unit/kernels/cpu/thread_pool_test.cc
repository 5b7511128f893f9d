#include "kernels/cpu/thread_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <vector>

namespace penstock::kernels::cpu {
namespace {

class ThreadPoolTest : public testing::TestWithParam<int> {};

TEST_P(ThreadPoolTest, EveryItemRunsOnce) {
  ThreadPool pool(GetParam());
  EXPECT_EQ(pool.threads(), GetParam());
  for (int loop = 0; loop < 2000; ++loop) {
    const int64_t count = loop % 67;
    std::vector<int> runs(count,
                          0);  // plain: each is one thread's at a time, and the caller's after
    pool.Run(count, [&](int, int64_t i) { ++runs[i]; });
    ASSERT_THAT(runs, testing::Each(1)) << "of " << count << " in loop " << loop;
  }
}

TEST_P(ThreadPoolTest, ThreadNumbersAreNeverShared) {
  ThreadPool pool(GetParam());
  std::vector<int64_t> sums(pool.threads(), 0);  // a race here is what TSan would see
  for (int loop = 0; loop < 500; ++loop) {
    pool.Run(50, [&](int thread, int64_t i) { sums[thread] += i; });
  }
  int64_t total = 0;
  for (const int64_t sum : sums) total += sum;
  EXPECT_EQ(total, 500 * 49 * 50 / 2);
}

TEST_P(ThreadPoolTest, HelpersTakePart) {
  ThreadPool pool(GetParam());
  // Each item waits for all the others to have begun, so each needs a thread of its own. Between
  // the loops helpers may have gone to sleep or not.
  for (int loop = 0; loop < 50; ++loop) {
    std::atomic<int> begun = 0;
    pool.Run(pool.threads(), [&](int, int64_t) {
      ++begun;
      begun.notify_all();
      for (int seen = begun; seen < pool.threads(); seen = begun) begun.wait(seen);
    });
    EXPECT_EQ(begun, pool.threads());
  }
}

TEST_P(ThreadPoolTest, StopsWhateverItsHelpersDo) {
  for (int i = 0; i < 200; ++i) {
    ThreadPool pool(GetParam());
    std::atomic<int> done = 0;
    for (int loop = 0; loop < i % 3; ++loop) pool.Run(4, [&](int, int64_t) { ++done; });
    EXPECT_EQ(done, 4 * (i % 3));
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, testing::Values(1, 2, 3, 8));

}  // namespace
}  // namespace penstock::kernels::cpu
