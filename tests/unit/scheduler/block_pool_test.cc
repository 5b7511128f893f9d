#include "scheduler/block_pool.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <set>

namespace penstock::scheduler {
namespace {

TEST(BlockPoolTest, GivesEveryPageOnce) {
  BlockPool pool(5);
  std::set<uint32_t> pages;
  while (pool.num_free() > 0) pages.insert(pool.Allocate());
  EXPECT_EQ(pages, (std::set<uint32_t>{0, 1, 2, 3, 4}));
  const std::vector<uint32_t> some = {3, 1};
  pool.Free(some);
  EXPECT_EQ(pool.num_free(), 2u);
  EXPECT_EQ(pool.Allocate(), 1u);  // the one freed last
}

TEST(BlockPoolDeathTest, EndsOnMisuse) {
  const testing::KilledBySignal aborted(SIGABRT);
  BlockPool pool(2);
  const std::vector<uint32_t> page = {pool.Allocate()};
  pool.Free(page);
  EXPECT_EXIT(pool.Free(page), aborted, "");
  const std::vector<uint32_t> unknown = {2};
  EXPECT_EXIT(pool.Free(unknown), aborted, "");
  pool.Allocate();
  pool.Allocate();
  EXPECT_EXIT(pool.Allocate(), aborted, "");
}

}  // namespace
}  // namespace penstock::scheduler
