// Devices that are formulas, two steps in flight, and always a prompt that takes all it gets.
#include "scheduler/step_budget.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <functional>
#include <random>
#include <vector>

namespace penstock::scheduler {
namespace {

constexpr uint32_t kMaxTokens = 8192;
constexpr uint32_t kFloor = StepBudget::kMinPromptTokens;

// Seconds of step `i`.
using Device = std::function<double(int i, double decodes, double prompt_tokens)>;

// An H200 with an 8B model, near enough (tools/bench/RESULTS.md).
double Linear(int, double decodes, double prompt_tokens) {
  return 3.6e-3 + 2.2e-5 * decodes + 2.3e-5 * prompt_tokens;
}

struct Case {
  Device device = Linear;
  std::function<uint32_t(int)> decodes = [](int) { return 64; };
  double target_s = 0.025;
  double noise = 0;   // relative, normally distributed
  double stalls = 0;  // share of steps that take 20 times as long
  int num_steps = 2000;
  int num_learning = 50;  // steps that are left out of the figures
  uint64_t seed = 1;
};

struct Figures {
  double above = 0;  // of steps with prompt tokens, those that take longer than the target
  double share = 0;  // prompt tokens a second of device time / those of the best budget
  std::vector<uint32_t> budgets;  // of all steps
};

// The most whose mean time is two spreads of the noise below the target: with more, more than 2% of
// the steps would be above it.
uint32_t BestPromptTokens(const Case& c, int i, uint32_t decodes) {
  uint32_t low = kFloor, high = kMaxTokens - decodes;
  while (low < high) {
    const uint32_t middle = (low + high + 1) / 2;
    const bool fits = c.device(i, decodes, middle) * (1 + 2 * c.noise) <= c.target_s;
    low = fits ? middle : low;
    high = fits ? high : middle - 1;
  }
  return low;
}

Figures Drive(const Case& c) {
  std::mt19937_64 random(c.seed);
  std::normal_distribution<double> normal;
  StepBudget budget(c.target_s, kMaxTokens);
  std::deque<std::pair<StepShape, double>> in_flight;
  Figures figures;
  double rate = 0, best_rate = 0;
  int num_above = 0, num_counted = 0;
  for (int i = 0; i < c.num_steps; ++i) {
    // The first prompts come to an idle engine; now and then there is none.
    const uint32_t decodes = i < 2 ? 0 : c.decodes(i);
    const uint32_t tokens = budget.Tokens(decodes);
    EXPECT_LE(tokens, kMaxTokens);
    EXPECT_GE(tokens, std::min(kMaxTokens, decodes + kFloor));
    figures.budgets.push_back(tokens);
    const uint32_t prompt_tokens = i % 7 == 6 ? 0 : tokens - decodes;
    const double mean_s = c.device(i, decodes, prompt_tokens);
    double seconds = mean_s * std::max(0.3, 1 + c.noise * normal(random));
    const bool stalls = std::bernoulli_distribution(c.stalls)(random);
    if (prompt_tokens > 0 && i >= c.num_learning) {
      ++num_counted;
      num_above += seconds > c.target_s * (1 + 1e-9);
      rate += prompt_tokens / mean_s;
      const uint32_t best = BestPromptTokens(c, i, decodes);
      best_rate += best / c.device(i, decodes, best);
    }
    in_flight.push_back({{decodes, prompt_tokens}, stalls ? 20 * seconds : seconds});
    if (in_flight.size() <= 2) continue;
    budget.Observe(in_flight.front().first, in_flight.front().second);
    in_flight.pop_front();
  }
  figures.above = static_cast<double>(num_above) / num_counted;
  figures.share = rate / best_rate;
  return figures;
}

TEST(StepBudget, WithoutATargetOrDecodesItIsTheLargest) {
  StepBudget none(0, 2048);
  none.Observe({64, 512}, 1.0);
  EXPECT_EQ(none.Tokens(64), 2048u);
  StepBudget budget(0.001, 2048);
  for (int i = 0; i < 100; ++i) budget.Observe({64, 512}, 1.0);
  EXPECT_EQ(budget.Tokens(0), 2048u);
  EXPECT_LT(budget.Tokens(1), 2048u);
}

TEST(StepBudget, BeforeAnythingIsKnownItIsTheLeast) {
  const StepBudget budget(1.0, 2048);
  EXPECT_EQ(budget.Tokens(1), 1 + kFloor);
  EXPECT_EQ(budget.Tokens(2000), 2048u);
}

TEST(StepBudget, PromptsGetOnWhenDecodesAloneMissTheTarget) {
  Case c;
  c.target_s = 0.002;
  for (uint32_t tokens : Drive(c).budgets)
    EXPECT_TRUE(tokens == 64 + kFloor || tokens == kMaxTokens);
}

TEST(StepBudget, ATargetThatIsNeverReachedLeavesTheLargest) {
  Case c;
  c.target_s = 1;
  const Figures figures = Drive(c);
  EXPECT_EQ(*std::min_element(figures.budgets.begin() + c.num_learning, figures.budgets.end()),
            kMaxTokens);
}

TEST(StepBudget, OnADeviceWithoutNoiseItSettlesAndStays) {
  const Figures figures = Drive({});
  EXPECT_EQ(figures.above, 0);
  EXPECT_GE(figures.share, 0.97);
  // Learnt within 10 steps but for a quarter; and it stays within a tile of where it ends.
  const uint32_t last = figures.budgets.back();
  EXPECT_GE(figures.budgets[10], 0.75 * last);
  const auto [least, most] =
      std::minmax_element(figures.budgets.begin() + 100, figures.budgets.end());
  EXPECT_LE(*most - *least, 64u);
}

TEST(StepBudget, NoiseIsLearntAndKeptClearOf) {
  for (const double noise : {0.01, 0.03, 0.1}) {
    Case c;
    c.noise = noise;
    const Figures figures = Drive(c);
    EXPECT_LE(figures.above, 0.04) << noise;
    EXPECT_GE(figures.share, 0.92) << noise;
    // It does not swing: the spread of the budget is no more than the steps' own.
    double sum = 0, squares = 0;
    for (auto tokens = figures.budgets.begin() + 200; tokens != figures.budgets.end(); ++tokens) {
      sum += *tokens;
      squares += double{1} * *tokens * *tokens;
    }
    const double n = figures.budgets.size() - 200.0, mean = sum / n;
    EXPECT_LE(std::sqrt(squares / n - mean * mean) / mean, noise + 0.03) << noise;
  }
}

TEST(StepBudget, StepsOfGraphsAndManyOrFewDecodes) {
  Case c;
  c.noise = 0.03;
  // Decodes alone run as graphs; with prompts each kernel is launched by itself.
  c.device = [](int i, double d, double p) { return Linear(i, d, p) + (p > 0 ? 1.5e-3 : 0); };
  for (const auto& decodes : std::vector<std::function<uint32_t(int)>>{
           [](int i) { return std::min(256, 1 + i / 4); }, [](int i) { return 1 + i * 7 % 250; },
           [](int i) { return i / 100 % 2 == 1 ? 200 : 4; }}) {
    c.decodes = decodes;
    const Figures figures = Drive(c);
    EXPECT_LE(figures.above, 0.04);
    EXPECT_GE(figures.share, 0.9);
  }
}

TEST(StepBudget, ADeviceThatIsNoStraightLine) {
  Case c;
  c.noise = 0.03;
  // Bound by memory up to 200 tokens, by arithmetic from there.
  c.device = [](int, double d, double p) { return 1e-3 + std::max(4.6e-3, 2.3e-5 * (d + p)); };
  EXPECT_LE(Drive(c).above, 0.04);
  EXPECT_GE(Drive(c).share, 0.95);
  // Whole tiles of 128 rows.
  c.device = [](int, double d, double p) { return 4e-3 + 2.9e-3 * std::ceil((d + p) / 128); };
  EXPECT_LE(Drive(c).above, 0.06);
  EXPECT_GE(Drive(c).share, 0.9);
}

TEST(StepBudget, GrowingAttentionIsFollowed) {
  Case c;
  c.noise = 0.03;
  // Prompts of 100 chunks, each of which costs 2% of the first more than the one before.
  c.device = [](int i, double d, double p) {
    return 3.6e-3 + 2.2e-5 * d + 2.3e-5 * p * (1 + 0.02 * (i % 100));
  };
  EXPECT_LE(Drive(c).above, 0.06);
  EXPECT_GE(Drive(c).share, 0.85);
  // Contexts of the decodes grow.
  c.device = [](int i, double d, double p) {
    return 3.6e-3 + 2.2e-5 * d * (1 + 0.004 * (i % 1000)) + 2.3e-5 * p;
  };
  EXPECT_LE(Drive(c).above, 0.04);
  EXPECT_GE(Drive(c).share, 0.9);
}

TEST(StepBudget, ADeviceThatBecomesTwiceAsSlow) {
  Case c;
  c.noise = 0.03;
  c.device = [](int i, double d, double p) { return (i < 1000 ? 1 : 2) * Linear(i, d, p); };
  c.num_learning = 1020;
  const Figures after = Drive(c);
  EXPECT_LE(after.above, 0.04);
  EXPECT_GE(after.share, 0.85);
  c.device = [](int i, double d, double p) { return (i < 1000 ? 2 : 1) * Linear(i, d, p); };
  EXPECT_LE(Drive(c).above, 0.04);
  EXPECT_GE(Drive(c).share, 0.9);
}

TEST(StepBudget, AStalledStepChangesLittle) {
  Case c;
  c.noise = 0.03;
  c.stalls = 0.01;
  const Figures with = Drive(c);
  EXPECT_LE(with.above, 0.04);
  EXPECT_GE(with.share, 0.92);
}

TEST(StepBudget, AFirstStepThatTakesSecondsIsForgotten) {
  Case c;
  c.device = [](int i, double d, double p) { return Linear(i, d, p) + (i < 2 ? 3.0 : 0.0); };
  c.num_learning = 60;
  const Figures figures = Drive(c);
  EXPECT_LE(figures.above, 0.01);
  EXPECT_GE(figures.share, 0.9);
}

TEST(StepBudget, AnyStraightLine) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  auto uniform = [&](double low, double high) {
    return std::exp(std::uniform_real_distribution<double>(std::log(low), std::log(high))(random));
  };
  for (int run = 0; run < 200; ++run) {
    const double step = uniform(1e-3, 0.1), decode = step * uniform(1e-4, 0.01);
    const double prompt = step * uniform(1e-3, 0.05), graph = step * uniform(0.01, 0.5);
    const uint32_t decodes = static_cast<uint32_t>(uniform(1, 250));
    Case c;
    c.device = [=](int, double d, double p) {
      return step + decode * d + prompt * p + (p > 0 ? graph : 0);
    };
    c.decodes = [=](int i) { return std::max(1, static_cast<int>(decodes) + i % 9 - 4); };
    // Prompts may take a third of a step at least: with less, the noise of the decodes is most of
    // it.
    const double least = (step + decode * decodes + graph) / 2 / prompt;
    c.target_s = c.device(0, decodes, uniform(std::max(5.0 * kFloor, least), kMaxTokens / 2.0));
    c.noise = uniform(0.005, 0.05);
    c.seed = random();
    const Figures figures = Drive(c);
    EXPECT_LE(figures.above, 0.06) << run;
    EXPECT_GE(figures.share, 0.8) << run;
  }
}

}  // namespace
}  // namespace penstock::scheduler
