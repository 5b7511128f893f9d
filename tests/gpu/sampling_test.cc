// The GPU sampler against a literal reading of kernels/sampling_params.h.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>

#include "gmock/gmock.h"
#include "kernels/cuda/sampler.h"
#include "kernels/philox.h"
#include "kernels/reference/reference_sampler.h"
#include "tests/gpu/device_array.h"

namespace penstock::kernels::cuda {
namespace {

constexpr uint64_t kSeed = 20261121;
constexpr int kLine = 128;  // ids a slot has room for

struct Row {
  std::vector<float> logits;
  SamplingParams params;
  std::vector<int32_t> ids;  // so far
  int32_t prompt_len = 1;
  int32_t target_id = -1;
  int32_t num_top = -1;
  bool padded = false;
};

struct Sampled {
  std::vector<int32_t> ids;
  std::vector<SampledLogprobs> logprobs;
};

class GpuSamplingTest : public testing::Test {
 protected:
  // Row i in slot i. Checks what came to the token table, too.
  Sampled Run(const std::vector<Row>& rows) {
    const auto count = static_cast<int32_t>(rows.size());
    const auto vocab = static_cast<int32_t>(rows[0].logits.size());
    std::vector<float> logits;
    std::vector<int32_t> table(count * kLine, -7);
    std::vector<SampleRow> sample_rows;
    std::vector<DeviceSampleRow> packed(count);
    std::vector<int32_t> side(100000);
    for (int i = 0; i < count; ++i) {
      const Row& row = rows[i];
      logits.insert(logits.end(), row.logits.begin(), row.logits.end());
      std::copy(row.ids.begin(), row.ids.end(), table.begin() + i * kLine);
      sample_rows.push_back({.params = &row.params,
                             .slot = row.padded ? -1 : i,
                             .position = static_cast<int32_t>(row.ids.size()),
                             .prompt_len = row.prompt_len,
                             .target_id = row.target_id,
                             .num_top = row.num_top});
    }
    const auto used = PackSampleRows(sample_rows, packed, side);
    EXPECT_TRUE(used.ok()) << used.status();
    const auto plan = PlanSampler(vocab);
    EXPECT_TRUE(plan.ok()) << plan.status();
    const DeviceVector<float> device_logits(logits);
    const DeviceVector<DeviceSampleRow> device_rows(packed);
    const DeviceVector<int32_t> device_side(side);
    const DeviceVector<int32_t> device_table(table);
    const DeviceVector<int32_t> ids(std::vector<int32_t>(count, -2));
    const DeviceVector<SampledLogprobs> logprobs(count);
    const DeviceVector<char> workspace(count * plan->workspace_bytes_per_row);
    const absl::Status status = Sample(nullptr, *plan,
                                       {.logits = device_logits.get(),
                                        .count = count,
                                        .rows = device_rows.get(),
                                        .side = device_side.get(),
                                        .tokens = {device_table.get(), kLine},
                                        .ids_out = ids.get(),
                                        .logprobs_out = logprobs.get(),
                                        .workspace = workspace.get()});
    EXPECT_TRUE(status.ok()) << status;
    const Sampled sampled = {ids.Get(), logprobs.Get()};
    for (int i = 0; i < count; ++i) {
      if (rows[i].target_id < 0 && sampled.ids[i] >= 0) {
        table[i * kLine + rows[i].ids.size()] = sampled.ids[i];
      }
    }
    EXPECT_TRUE(device_table.Get() == table) << "the token table";
    EXPECT_TRUE(device_logits.Get() == logits || std::isnan(logits[0]) || has_odd_) << "logits";
    return sampled;
  }

  std::vector<float> MakeLogits(int vocab, float deviation = 3) {
    std::normal_distribution<float> normal(0, deviation);
    std::vector<float> logits(vocab);
    for (float& logit : logits) logit = normal(random_);
    logits[vocab / 2] = logits[vocab / 3];
    return logits;
  }

  // Draws with as many seeds must follow `expected` (chi-square).
  void ExpectFollows(const std::vector<float>& logits, const SamplingParams& params,
                     const std::vector<double>& expected) {
    constexpr int kDraws = 20000, kBatch = 1000;
    std::vector<int> counts(logits.size());
    for (int i = 0; i < kDraws; i += kBatch) {
      std::vector<Row> rows(kBatch, {.logits = logits, .params = params, .ids = {1}});
      for (int j = 0; j < kBatch; ++j) rows[j].params.seed = kSeed + i + j;
      for (const int32_t id : Run(rows).ids) {
        ASSERT_GE(id, 0);
        ++counts[id];
      }
    }
    double chi = 0;
    int degrees = -1;
    for (size_t i = 0; i < expected.size(); ++i) {
      if (expected[i] == 0) {
        EXPECT_EQ(counts[i], 0) << "id " << i << " was masked";
      } else {
        chi += std::pow(counts[i] - expected[i] * kDraws, 2) / (expected[i] * kDraws);
        ++degrees;
      }
    }
    EXPECT_LT(chi, degrees + 4 * std::sqrt(2.0 * degrees) + 5);
  }

  std::mt19937 random_{5};
  bool has_odd_ = false;  // NaN in the logits
};

TEST_F(GpuSamplingTest, GreedyTakesTheLowestOfEquals) {
  for (const int vocab : {1, 2, 15, 17, 1000, 1025, 49152, 50257, 128256, 262144}) {
    std::vector<Row> rows;
    for (const int at : {vocab - 1, vocab / 2, vocab / 3, 0}) {
      rows.push_back({.logits = MakeLogits(vocab), .params = {.temperature = 0}, .ids = {1, 2}});
      rows.back().logits[at] = rows.back().logits[vocab - 1] = 30;
    }
    EXPECT_THAT(Run(rows).ids, testing::ElementsAre(vocab - 1, vocab / 2, vocab / 3, 0)) << vocab;
  }
  std::vector<float> zeros(100, -0.0f);
  zeros[50] = 0.0f;
  EXPECT_EQ(Run({{.logits = zeros, .params = {.temperature = 0}, .ids = {1}}}).ids[0], 0);
}

TEST_F(GpuSamplingTest, GivesTheReferencesIdForEverySetting) {
  const std::vector<SamplingParams> settings = {
      {},
      {.temperature = 0.7f},
      {.temperature = 3.0f},
      {.temperature = 1e-3f},
      {.top_k = 1},
      {.top_k = 40},
      {.top_k = 1000},
      {.top_k = 1000000},
      {.top_p = 0.9f},
      {.top_p = 1e-6f},
      {.temperature = 5.0f, .top_p = 0.95f},
      {.temperature = 5.0f, .top_p = 0.999999f},
      {.top_p = 0.99999994f, .min_p = 0.02f},  // the float before 1
      {.temperature = 100.0f, .top_p = 0.5f},
      {.min_p = 0.05f},
      {.min_p = 1.0f},
      {.temperature = 0.8f, .top_k = 50, .top_p = 0.9f},
      {.temperature = 2.0f, .top_k = 700, .top_p = 0.8f},
      {.temperature = 1.5f, .top_k = 20, .top_p = 0.8f, .min_p = 0.02f},
      {.repetition_penalty = 1.3f},
      {.top_k = 10, .presence_penalty = 0.6f, .frequency_penalty = 0.4f},
      {.temperature = 0, .repetition_penalty = 2.0f, .presence_penalty = 1, .frequency_penalty = 1},
  };
  int draws = 0, different = 0;
  for (const int vocab : {7, 300, 5001, 49152, 128256}) {
    std::vector<Row> rows;
    for (const SamplingParams& params : settings) {
      for (int i = 0; i < (vocab > 10000 ? 3 : 12); ++i) {
        rows.push_back({.logits = MakeLogits(vocab, i % 3 == 0   ? 3
                                                    : i % 3 == 1 ? 1
                                                                 : 0.02f),
                        .params = params,
                        .prompt_len = 25});
        Row& row = rows.back();
        const auto best = std::max_element(row.logits.begin(), row.logits.end());
        for (int j = 0; j < 40; ++j) row.ids.push_back(static_cast<int32_t>(random_() % vocab));
        row.ids[20] = row.ids[30] = static_cast<int32_t>(best - row.logits.begin());
        row.params.seed = random_();
      }
    }
    const Sampled sampled = Run(rows);
    for (size_t i = 0; i < rows.size(); ++i) {
      const Row& row = rows[i];
      const auto changed = reference::Penalised(row.logits, row.params, row.ids, 25);
      const int32_t expected = reference::Draw(reference::Distribution(changed, row.params),
                                               UniformAt(row.params.seed, 40));
      ++draws;
      if (sampled.ids[i] == expected) continue;
      ++different;
      std::printf("vocabulary %d, row %zu: %d, not %d\n", vocab, i, sampled.ids[i], expected);
      EXPECT_GT(row.params.temperature, 0) << "greedy must agree";
    }
  }
  // A number that falls within float32's rounding of a border may go to the neighbour; and where a
  // high temperature makes equals of many weights, top-p's cut takes them by id (as the CPU's
  // does).
  std::printf("%d of %d draws differ from the reference\n", different, draws);
  EXPECT_LE(different, draws / 300);
}

TEST_F(GpuSamplingTest, FollowsTheDistribution) {
  const std::vector<float> logits = MakeLogits(40, 1.5f);
  const std::vector<SamplingParams> settings = {
      {}, {.temperature = 0.6f}, {.top_k = 7}, {.top_p = 0.7f}, {.min_p = 0.1f}};
  for (const SamplingParams& params : settings) {
    const std::vector<double> exact(logits.begin(), logits.end());
    ExpectFollows(logits, params, reference::Distribution(exact, params));
  }
}

TEST_F(GpuSamplingTest, EqualsAreKeptOrCutAsDefined) {
  // Rows of many equals: top-k keeps all of the last equals, top-p the lowest ids of them.
  for (const int vocab : {6, 1000, 128256}) {
    std::vector<float> logits(vocab, 1.0f);
    for (int i = 0; i < vocab; i += 3) logits[i] = 0;
    std::vector<Row> rows;
    for (const SamplingParams& params :
         {SamplingParams{.top_k = 2}, SamplingParams{.top_k = 2, .top_p = 0.51f},
          SamplingParams{.top_p = 0.3f}, SamplingParams{.top_p = 0.95f}}) {
      for (int i = 0; i < 6; ++i) {
        rows.push_back({.logits = logits, .params = params, .ids = {1}, .num_top = 20});
        rows.back().params.seed = kSeed + i;
      }
    }
    const Sampled sampled = Run(rows);
    const auto ranked = reference::Ranked(reference::LogSoftmax(logits));
    for (size_t i = 0; i < rows.size(); ++i) {
      const std::vector<double> exact(logits.begin(), logits.end());
      EXPECT_EQ(sampled.ids[i], reference::Draw(reference::Distribution(exact, rows[i].params),
                                                UniformAt(rows[i].params.seed, 1)))
          << "vocabulary " << vocab << ", row " << i;
      for (int j = 0; j < std::min(vocab, 20); ++j) {
        ASSERT_EQ(sampled.logprobs[i].top_id[j], ranked[j].first);
      }
    }
  }
}

TEST_F(GpuSamplingTest, BiasAndMinTokens) {
  const std::vector<float> logits = {1, 5, 3, 2};
  const std::vector<LogitBias> bias = {{3, 100}, {1, -100}, {99, 5}, {-1, 5}};
  const std::vector<LogitBias> twice = {{0, 3}, {2, 1}, {0, 3}, {1, -1}};
  const std::vector<int32_t> stop = {1, 2, 77};
  const SamplingParams masked = {.temperature = 0, .min_tokens = 2, .stop_ids = stop};
  const std::vector<int32_t> both = {0, 1, 2, 3};
  EXPECT_THAT(Run({{logits, {.temperature = 0, .logit_bias = bias}, {0}, 1},
                   {logits, {.temperature = 0, .logit_bias = twice}, {0}, 1},
                   {logits, masked, {0, 0, 0}, 2},
                   {logits, masked, {0, 0, 0, 0}, 2},
                   {logits, {.temperature = 1, .min_tokens = 1, .stop_ids = both}, {0}, 1}})
                  .ids,
              testing::ElementsAre(3, 0, 3, 1, -1));
}

TEST_F(GpuSamplingTest, PenaltiesCountWholeContexts) {
  // Ids in every slice and window of the vocabulary, many times over.
  constexpr int kVocab = 128256;
  std::vector<Row> rows;
  for (int i = 0; i < 8; ++i) {
    rows.push_back({.logits = MakeLogits(kVocab),
                    .params = {.temperature = 0,
                               .repetition_penalty = 1 + 0.2f * static_cast<float>(i % 3),
                               .presence_penalty = 0.3f,
                               .frequency_penalty = 0.7f},
                    .prompt_len = 60});
    std::vector<int> order(kVocab);
    for (int j = 0; j < kVocab; ++j) order[j] = j;
    const auto& logits = rows[i].logits;
    std::partial_sort(order.begin(), order.begin() + 40, order.end(),
                      [&](int a, int b) { return logits[a] > logits[b]; });
    for (int j = 0; j < 120; ++j) rows[i].ids.push_back(order[random_() % 40]);
  }
  const Sampled sampled = Run(rows);
  for (int i = 0; i < 8; ++i) {
    const auto changed = reference::Penalised(rows[i].logits, rows[i].params, rows[i].ids, 60);
    EXPECT_EQ(sampled.ids[i], std::max_element(changed.begin(), changed.end()) - changed.begin());
  }
}

TEST_F(GpuSamplingTest, LogprobsAreOfTheRawLogits) {
  const std::vector<int32_t> stop = {3};
  const std::vector<LogitBias> bias = {{2, 50}};
  for (const int vocab : {5, 1000, 50257, 128256}) {
    const std::vector<float> logits = MakeLogits(vocab);
    const auto expected = reference::LogSoftmax(logits);
    const auto ranked = reference::Ranked(expected);
    const SamplingParams biased = {.temperature = 0.3f,
                                   .repetition_penalty = 1.9f,
                                   .seed = 3,
                                   .min_tokens = 9,
                                   .stop_ids = stop,
                                   .logit_bias = bias};
    std::vector<Row> rows;
    for (const int num_top : {0, 1, 20, 1000}) {
      rows.push_back({logits, biased, {4, 1}, 1, -1, num_top});
      rows.push_back({logits, {.temperature = 0}, {4, 1}, 1, -1, num_top});
      rows.push_back({logits, biased, {4, 1}, 2, vocab / 2, num_top});  // a prompt's token
      rows.push_back({logits, {.top_p = 0.5f}, {4, 1}, 1, -1, num_top});
    }
    const Sampled sampled = Run(rows);
    for (size_t i = 0; i < rows.size(); ++i) {
      const int32_t id = sampled.ids[i];
      const SampledLogprobs& got = sampled.logprobs[i];
      if (i % 4 == 0) {
        EXPECT_EQ(id, 2);
      }
      if (i % 4 == 1) {
        EXPECT_EQ(id, ranked[0].first);
      }
      if (i % 4 == 2) {
        EXPECT_EQ(id, vocab / 2);
      }
      ASSERT_GE(id, 0);
      EXPECT_NEAR(got.logprob, expected[id], 2e-5);
      EXPECT_EQ(ranked[got.rank - 1].first, id);
      ASSERT_EQ(got.num_top, std::min({rows[i].num_top, vocab, kMaxTopLogprobs}));
      for (int j = 0; j < got.num_top; ++j) {
        EXPECT_EQ(got.top_id[j], ranked[j].first);
        EXPECT_NEAR(got.top_logprob[j], ranked[j].second, 2e-5);
      }
    }
  }
}

TEST_F(GpuSamplingTest, ABadRowFailsAloneAndPaddingDoesNothing) {
  constexpr int kVocab = 1000;
  has_odd_ = true;
  const Row good = {.logits = MakeLogits(kVocab), .params = {.temperature = 0}, .ids = {1}};
  const auto best = static_cast<int32_t>(std::max_element(good.logits.begin(), good.logits.end()) -
                                         good.logits.begin());
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    for (const int at : {0, 500, kVocab - 1}) {
      std::vector<Row> rows(5, good);
      rows[2].logits[at] = bad;
      rows[4].padded = true;
      std::vector<int32_t> ids = Run(rows).ids;
      EXPECT_THAT(ids, testing::ElementsAre(best, best, -1, best, -2));
    }
  }
}

TEST_F(GpuSamplingTest, SameIdWhateverRowsAreBesideIt) {
  constexpr int kVocab = 3000, kCount = 17;
  std::vector<Row> rows;
  for (int i = 0; i < kCount; ++i) {
    rows.push_back({.logits = MakeLogits(kVocab),
                    .params = {.top_k = i % 3 * 20,
                               .top_p = i % 2 == 0 ? 1.0f : 0.9f,
                               .repetition_penalty = 1.0f + 0.1f * static_cast<float>(i % 4),
                               .seed = random_()},
                    .prompt_len = 11});
    for (int j = 0; j < 40 + i % 5; ++j) rows[i].ids.push_back(random_() % kVocab);
  }
  const std::vector<int32_t> together = Run(rows).ids;
  for (int i = 0; i < kCount; ++i) EXPECT_EQ(Run({rows[i]}).ids[0], together[i]);
}

}  // namespace
}  // namespace penstock::kernels::cuda
