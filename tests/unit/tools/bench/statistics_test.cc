#include "tools/penstock/bench/statistics.h"

#include <gtest/gtest.h>

namespace penstock::bench {
namespace {

TEST(StatisticsTest, PercentilesInterpolate) {
  const std::vector<double> four = {1, 2, 3, 4};
  EXPECT_DOUBLE_EQ(Percentile(four, 0), 1);
  EXPECT_DOUBLE_EQ(Percentile(four, 50), 2.5);
  EXPECT_DOUBLE_EQ(Percentile(four, 95), 3.85);  // as numpy.percentile
  EXPECT_DOUBLE_EQ(Percentile(four, 99), 3.97);
  EXPECT_DOUBLE_EQ(Percentile(four, 100), 4);
  EXPECT_DOUBLE_EQ(Percentile(std::vector<double>{7}, 99), 7);
}

TEST(StatisticsTest, SummaryOfSamplesInAnyOrder) {
  const Summary summary = Summarise({30, 10, 20});
  EXPECT_EQ(summary.count, 3u);
  EXPECT_DOUBLE_EQ(summary.mean, 20);
  EXPECT_DOUBLE_EQ(summary.min, 10);
  EXPECT_DOUBLE_EQ(summary.p50, 20);
  EXPECT_DOUBLE_EQ(summary.max, 30);
  EXPECT_DOUBLE_EQ(Median({4, 1, 3, 2}), 2.5);
}

TEST(StatisticsTest, NoSamples) {
  EXPECT_EQ(Summarise({}).count, 0u);
  EXPECT_DOUBLE_EQ(Median({}), 0);
}

}  // namespace
}  // namespace penstock::bench
