#include "scheduler/admission_margin.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace penstock::scheduler {
namespace {

TEST(AdmissionMarginTest, StaysWithinItsBounds) {
  AdmissionMargin margin;
  EXPECT_EQ(margin.Pages(10'000), 300u);
  for (int i = 0; i < 1000; ++i) margin.Preempted();
  EXPECT_EQ(margin.Pages(10'000), 5000u);
  for (int i = 0; i < 1'000'000; ++i) margin.Ended();
  EXPECT_EQ(margin.Pages(10'000), 20u);
}

// Requests of which a share is preempted that falls with the margin: it ends up where the share is
// the target, from wherever it started.
TEST(AdmissionMarginTest, SettlesWhereTheTargetIsMet) {
  for (int start : {-1, 1}) {
    AdmissionMargin margin;
    for (int i = 0; i < 80; ++i) start < 0 ? margin.Ended() : margin.Preempted();
    std::mt19937 random(5);
    uint64_t preempted = 0;
    constexpr int kLearn = 100'000, kCount = 400'000;
    for (int i = 0; i < kLearn + kCount; ++i) {
      const double share = margin.Pages(1'000'000) / 1e6;
      if (std::bernoulli_distribution(0.05 * std::exp(-share / 0.03))(random)) {
        margin.Preempted();
        preempted += i >= kLearn;
      }
      margin.Ended();
    }
    EXPECT_NEAR(preempted / double{kCount}, AdmissionMargin::kTarget,
                0.1 * AdmissionMargin::kTarget);
  }
}

}  // namespace
}  // namespace penstock::scheduler
