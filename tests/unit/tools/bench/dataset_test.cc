#include "tools/penstock/bench/dataset.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace penstock::bench {
namespace {

constexpr DatasetOptions kOptions = {
    .num_prompts = 50, .input_len = 20, .output_len = 8, .vocab_size = 100, .seed = 7};

TEST(DatasetTest, ExactLengthsAndIdsOfTheVocabulary) {
  const std::vector<Prompt> prompts = MakePrompts(kOptions);
  ASSERT_EQ(prompts.size(), 50u);
  for (const Prompt& prompt : prompts) {
    EXPECT_EQ(prompt.ids.size(), 20u);
    EXPECT_EQ(prompt.output_len, 8);
    EXPECT_TRUE(std::all_of(prompt.ids.begin(), prompt.ids.end(),
                            [](int32_t id) { return id >= 0 && id < 100; }));
  }
  EXPECT_NE(prompts[0].ids, prompts[1].ids);
}

TEST(DatasetTest, TheSeedDecidesAll) {
  DatasetOptions other = kOptions;
  other.seed = 8;
  EXPECT_EQ(MakePrompts(kOptions)[9].ids, MakePrompts(kOptions)[9].ids);
  EXPECT_NE(MakePrompts(kOptions)[9].ids, MakePrompts(other)[9].ids);
}

TEST(DatasetTest, PrefixesAreSharedInTurn) {
  DatasetOptions options = kOptions;
  options.prefix_len = 30;
  options.num_prefixes = 2;
  const std::vector<Prompt> prompts = MakePrompts(options);
  auto prefix = [&](int i) {
    return std::vector<int32_t>(prompts[i].ids.begin(), prompts[i].ids.begin() + 30);
  };
  EXPECT_EQ(prompts[0].ids.size(), 50u);
  EXPECT_EQ(prefix(0), prefix(2));
  EXPECT_EQ(prefix(1), prefix(3));
  EXPECT_NE(prefix(0), prefix(1));
  EXPECT_NE(prompts[0].ids, prompts[2].ids);
}

TEST(DatasetTest, RangeRatioSpreadsLengths) {
  DatasetOptions options = kOptions;
  options.range_ratio = 0.5;
  size_t shortest = 1000, longest = 0;
  for (const Prompt& prompt : MakePrompts(options)) {
    shortest = std::min(shortest, prompt.ids.size());
    longest = std::max(longest, prompt.ids.size());
    EXPECT_GE(prompt.output_len, 4);
    EXPECT_LE(prompt.output_len, 12);
  }
  EXPECT_GE(shortest, 10u);
  EXPECT_LE(longest, 30u);
  EXPECT_LT(shortest, longest);
}

TEST(DatasetTest, InfiniteRateIsAtOnce) {
  const double infinite = std::numeric_limits<double>::infinity();
  EXPECT_EQ(ArrivalTimes(3, infinite, 0), (std::vector<double>{0, 0, 0}));
}

TEST(DatasetTest, PoissonArrivals) {
  const std::vector<double> times = ArrivalTimes(4000, 10, 3);
  EXPECT_TRUE(std::is_sorted(times.begin(), times.end()));
  EXPECT_DOUBLE_EQ(times.back(), 400);
  // Gaps of a Poisson process are as spread as they are long.
  double squares = 0;
  for (size_t i = 1; i < times.size(); ++i) squares += std::pow(times[i] - times[i - 1] - 0.1, 2);
  EXPECT_NEAR(std::sqrt(squares / 3999), 0.1, 0.01);
}

}  // namespace
}  // namespace penstock::bench
