#include "scheduler/length_estimate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <random>

namespace penstock::scheduler {
namespace {

constexpr size_t kWindow = WindowEstimate::kWindow;
// The rank of a quantile.
constexpr uint32_t At(double share) { return static_cast<uint32_t>(share * 4294967295.0); }

TEST(WindowEstimateTest, KnowsNothingAtFirst) {
  WindowEstimate estimate;
  for (double share : {0.0, 0.5, 1.0}) EXPECT_EQ(estimate.Expect(0, 700, At(share)), 700u);
  EXPECT_EQ(estimate.Expect(699, 700, 0), 700u);
  EXPECT_EQ(estimate.Expect(700, 700, 0), 700u);
  EXPECT_EQ(estimate.Expect(0, 100'000, 0), WindowEstimate::kUnseen);
  EXPECT_EQ(estimate.Expect(3000, 100'000, 0), 6000u);
}

TEST(WindowEstimateTest, QuantilesOfWhatIsLongerThanGenerated) {
  WindowEstimate estimate;
  // 512 each of 10, 20, 30, 40, mixed.
  for (size_t i = 0; i < kWindow; ++i) estimate.Observe(10 * (1 + i % 4));
  EXPECT_EQ(estimate.Expect(0, 1000, At(0.00)), 10u);
  EXPECT_EQ(estimate.Expect(0, 1000, At(0.24)), 10u);
  EXPECT_EQ(estimate.Expect(0, 1000, At(0.26)), 20u);
  EXPECT_EQ(estimate.Expect(0, 1000, At(0.74)), 30u);
  EXPECT_EQ(estimate.Expect(0, 1000, At(1.00)), 40u);
  // With 20 generated, 30 and 40 are left, alike.
  EXPECT_EQ(estimate.Expect(20, 1000, At(0.49)), 30u);
  EXPECT_EQ(estimate.Expect(20, 1000, At(0.51)), 40u);
  EXPECT_EQ(estimate.Expect(0, 25, At(0.9)), 25u);   // never over max_tokens
  EXPECT_EQ(estimate.Expect(40, 1000, At(0)), 80u);  // outlives all: doubles
  EXPECT_EQ(estimate.Expect(40, 50, At(0)), 50u);
}

// The first to end are the short ones: a window that is hardly filled leans on what it assumes.
TEST(WindowEstimateTest, WhatIsNotSeenYetIsLong) {
  WindowEstimate estimate;
  for (size_t i = 0; i < kWindow / 16; ++i) estimate.Observe(10);  // 128 seen, 1920 / 8 = 240 not
  EXPECT_EQ(estimate.Expect(0, 500, At(0.34)), 10u);               // 128 / 368 = 0.348
  EXPECT_EQ(estimate.Expect(0, 500, At(0.36)), 500u);
  EXPECT_EQ(estimate.Expect(10, 500, At(0)), 500u);
}

TEST(WindowEstimateTest, ForgetsWhatIsOlderThanTheWindow) {
  WindowEstimate estimate;
  for (size_t i = 0; i < kWindow; ++i) estimate.Observe(1000);
  for (size_t i = 0; i < kWindow - 1; ++i) estimate.Observe(5);
  EXPECT_EQ(estimate.Expect(0, 9999, At(1)), 1000u);
  estimate.Observe(5);
  EXPECT_EQ(estimate.Expect(0, 9999, At(1)), 5u);
}

// Against the definition, with the window filled and turned over; monotonic in each argument.
TEST(WindowEstimateTest, RandomisedAgainstTheDefinition) {
  const auto seed = std::random_device()();
  std::printf("seed %u\n", seed);
  std::mt19937 random(seed);
  std::lognormal_distribution<double> length(4, 1);
  WindowEstimate estimate;
  std::deque<uint32_t> window;
  for (size_t i = 0; i < 3 * kWindow; ++i) {
    window.push_back(1 + static_cast<uint32_t>(std::min(length(random), 5000.0)));
    estimate.Observe(window.back());
    if (window.size() > kWindow) window.pop_front();
    if (i % 64 != 0) continue;
    const uint32_t generated = random() % 300, max_tokens = 1 + random() % 600;
    const uint32_t rank = random();
    std::vector<uint32_t> longer;
    for (uint32_t seen : window) {
      if (seen > generated) longer.push_back(seen);
    }
    std::sort(longer.begin(), longer.end());
    const bool full = window.size() == kWindow;
    const uint32_t unseen = std::max(full ? 0 : WindowEstimate::kUnseen, 2 * generated);
    longer.resize(longer.size() + (kWindow - window.size()) / WindowEstimate::kPriorShare, unseen);
    const size_t pick = (uint64_t{rank} * longer.size()) >> 32;
    const uint64_t want = longer.empty() ? unseen : longer[pick];
    const uint32_t got = estimate.Expect(generated, max_tokens, rank);
    EXPECT_EQ(got, std::min<uint64_t>(want, max_tokens)) << generated << " " << max_tokens;
    EXPECT_GT(got, std::min(generated, max_tokens - 1));
    EXPECT_LE(got, estimate.Expect(generated, max_tokens, UINT32_MAX));
    EXPECT_LE(got, estimate.Expect(generated, max_tokens + 100, rank));
    EXPECT_LE(got, estimate.Expect(generated + 1, max_tokens, rank));
  }
}

// What the estimate is for: the sum over a batch that has run for a while comes out right.
TEST(WindowEstimateTest, TheSumOverABatchIsTrue) {
  std::mt19937 random(7);
  std::lognormal_distribution<double> length(5, 1);
  auto draw = [&] { return 1 + static_cast<uint32_t>(length(random)); };
  WindowEstimate estimate;
  for (size_t i = 0; i < kWindow; ++i) estimate.Observe(draw());
  double truth = 0, expected = 0;
  uint64_t order = 0;
  for (int running = 0; running < 20'000;) {
    const uint32_t end = draw(), generated = random() % 400;
    ++order;
    if (end <= generated) continue;
    ++running;
    truth += end - generated;
    expected += estimate.Expect(generated, 1 << 20, RankOf(order)) - generated;
  }
  EXPECT_NEAR(expected / truth, 1.0, 0.1);
}

TEST(RankOfTest, NeighboursSpreadEvenly) {
  for (uint64_t first : {1u, 1000u, 123456789u}) {
    std::vector<int> tenths(10);
    for (uint64_t i = 0; i < 100; ++i) ++tenths[uint64_t{RankOf(first + i)} * 10 >> 32];
    for (int count : tenths) EXPECT_NEAR(count, 10, 1);
  }
}

}  // namespace
}  // namespace penstock::scheduler
