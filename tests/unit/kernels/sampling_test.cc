// Backend::Sample against a literal reading of kernels/sampling_params.h.
#include <cmath>
#include <cstring>
#include <limits>

#include "gmock/gmock.h"
#include "kernels/philox.h"
#include "kernels/reference/reference_sampler.h"
#include "tests/unit/kernels/test_backends.h"

namespace penstock::kernels {
namespace {

using testing::HasSubstr;

constexpr uint64_t kSeed = 20261121;

TEST(PhiloxTest, MatchesThePublishedVectors) {
  // Random123's known answers for philox4x32-10.
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(PhiloxTest, UniformIsUniform) {
  constexpr int kDraws = 100000, kBins = 50;
  std::vector<int> bins(kBins);
  for (int i = 0; i < kDraws; ++i) {
    const double u = UniformAt(kSeed, i);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    ++bins[static_cast<int>(u * kBins)];
  }
  double chi = 0;
  for (const int count : bins) chi += std::pow(count - kDraws / kBins, 2) / (kDraws / kBins);
  EXPECT_LT(chi, 85.4);  // 99.9% of chi-square with 49 degrees of freedom
}

class SamplingTest : public testing::TestWithParam<TestBackend> {
 protected:
  // One row: the id drawn, the log-probabilities if num_top >= 0 in `logprobs_`.
  int32_t SampleOne(const std::vector<float>& logits, const SamplingParams& params,
                    std::vector<int32_t> ids, int prompt_len, int num_top = -1,
                    int target_id = -1) {
    std::vector<float> copy = logits;
    SampleRow row = {.params = &params,
                     .position = static_cast<int32_t>(ids.size()),
                     .prompt_len = prompt_len,
                     .target_id = target_id,
                     .num_top = num_top};
    ids.push_back(-7);
    int32_t out = -2;
    status_ = backend_->Sample({.logits = copy.data(),
                                .count = 1,
                                .vocab_size = static_cast<int32_t>(logits.size()),
                                .rows = &row,
                                .tokens = {ids.data(), static_cast<int64_t>(ids.size())},
                                .ids_out = &out,
                                .logprobs_out = &logprobs_});
    EXPECT_EQ(ids.back(), target_id >= 0 || out < 0 ? -7 : out) << "the token table";
    return out;
  }

  // Draws at many positions must follow `expected` (chi-square, fixed seeds).
  void ExpectFollows(const std::vector<float>& logits, SamplingParams params,
                     const std::vector<double>& expected) {
    constexpr int kDraws = 20000;
    std::vector<int> counts(logits.size());
    for (int i = 0; i < kDraws; ++i) {
      params.seed = kSeed + i;
      ++counts[SampleOne(logits, params, {1}, 1)];
    }
    ASSERT_TRUE(status_.ok()) << status_;
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

  // A skewed row, as real ones are, with a few equals in it.
  std::vector<float> MakeLogits(int vocab, float deviation = 3) {
    std::vector<float> logits = RandomFloats(vocab, &random_, deviation);
    logits[vocab / 2] = logits[vocab / 3];
    return logits;
  }

  std::unique_ptr<Backend> backend_ = GetParam().Make(16, 50000);
  std::mt19937 random_{5};
  SampledLogprobs logprobs_;
  absl::Status status_;
};

TEST_P(SamplingTest, GreedyTakesTheLowestOfEquals) {
  for (const int vocab : {1, 2, 15, 16, 17, 1000, 1024, 1025, 49152}) {
    std::vector<float> logits = RandomFloats(vocab, &random_);
    for (const int at : {vocab - 1, vocab / 2, vocab / 3}) {
      logits[at] = 9;
      EXPECT_EQ(SampleOne(logits, {.temperature = 0}, {1, 2}, 1), at);
    }
  }
  EXPECT_EQ(SampleOne(std::vector<float>(100, -1e30f), {.temperature = 0}, {1}, 1), 0);
}

TEST_P(SamplingTest, GivesTheReferencesIdForEverySetting) {
  const std::vector<SamplingParams> settings = {
      {},
      {.temperature = 0.7f},
      {.temperature = 3.0f},
      {.temperature = 1e-3f},
      {.top_k = 1},
      {.top_k = 40},
      {.top_k = 100000},
      {.top_p = 0.9f},
      {.top_p = 1e-6f},
      {.temperature = 5.0f, .top_p = 0.95f},
      {.temperature = 5.0f, .top_p = 0.999999f},
      {.top_p = 0.99999994f, .min_p = 0.02f},  // the float before 1
      {.temperature = 100.0f, .top_p = 0.5f},
      {.min_p = 0.05f},
      {.min_p = 1.0f},
      {.temperature = 0.8f, .top_k = 50, .top_p = 0.9f},
      {.temperature = 1.5f, .top_k = 20, .top_p = 0.8f, .min_p = 0.02f},
      {.repetition_penalty = 1.3f},
      {.top_k = 10, .presence_penalty = 0.6f, .frequency_penalty = 0.4f},
      {.temperature = 0, .repetition_penalty = 2.0f, .presence_penalty = 1, .frequency_penalty = 1},
  };
  int draws = 0, different = 0;
  for (const int vocab : {7, 300, 5000, 49152}) {
    for (SamplingParams params : settings) {
      for (int i = 0; i < (vocab > 10000 ? 2 : 12); ++i) {
        const std::vector<float> logits = MakeLogits(vocab, i % 2 == 0 ? 3 : 1);
        std::vector<int32_t> ids;
        const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
        for (int j = 0; j < 40; ++j) ids.push_back(static_cast<int32_t>(random_() % vocab));
        ids[20] = ids[30] = static_cast<int32_t>(best);
        params.seed = random_();
        const auto expected =
            reference::Distribution(reference::Penalised(logits, params, ids, 25), params);
        const double uniform = UniformAt(params.seed, 40);
        ++draws;
        different += SampleOne(logits, params, ids, 25) != reference::Draw(expected, uniform);
        ASSERT_TRUE(status_.ok()) << status_;
      }
    }
  }
  // A number that falls within float32's rounding of a border may go to the neighbour.
  EXPECT_LE(different, 2) << "of " << draws;
}

TEST_P(SamplingTest, FollowsTheDistribution) {
  const std::vector<float> logits = MakeLogits(40, 1.5f);
  const std::vector<SamplingParams> settings = {
      {}, {.temperature = 0.6f}, {.top_k = 7}, {.top_p = 0.7f}, {.min_p = 0.1f}};
  for (const SamplingParams& params : settings) {
    const std::vector<double> exact(logits.begin(), logits.end());
    ExpectFollows(logits, params, reference::Distribution(exact, params));
  }
}

TEST_P(SamplingTest, TopKKeepsEqualsAndTopPTheFewest) {
  // 4 equals: k = 2 keeps all of them; p = 0.5 of them is exactly the lowest two.
  const std::vector<float> logits = {0, 2, 2, -1, 2, 2};
  ExpectFollows(logits, {.top_k = 2}, {0, 0.25, 0.25, 0, 0.25, 0.25});
  ExpectFollows(logits, {.top_k = 2, .top_p = 0.5f}, {0, 0.5, 0.5, 0, 0, 0});
}

TEST_P(SamplingTest, BiasAndMinTokens) {
  const std::vector<float> logits = {1, 5, 3, 2};
  const std::vector<LogitBias> bias = {{3, 100}, {1, -100}, {99, 5}, {-1, 5}};
  EXPECT_EQ(SampleOne(logits, {.temperature = 0, .logit_bias = bias}, {0}, 1), 3);
  const std::vector<int32_t> stop = {1, 2, 77};
  SamplingParams params = {.temperature = 0, .min_tokens = 2, .stop_ids = stop};
  EXPECT_EQ(SampleOne(logits, params, {0, 0, 0}, 2), 3);
  EXPECT_EQ(SampleOne(logits, params, {0, 0, 0, 0}, 2), 1);
  params.temperature = 1;
  ExpectFollows(
      logits, params,
      reference::Distribution(std::vector<double>{1, -INFINITY, -INFINITY, 2}, {.temperature = 1}));
}

TEST_P(SamplingTest, LogprobsAreOfTheRawLogits) {
  for (const int vocab : {5, 1000, 49152}) {
    const std::vector<float> logits = MakeLogits(vocab);
    const std::vector<int32_t> stop = {3};
    const std::vector<LogitBias> bias = {{2, 50}};
    const SamplingParams params = {.temperature = 0.3f,
                                   .repetition_penalty = 1.9f,
                                   .seed = 3,
                                   .min_tokens = 9,
                                   .stop_ids = stop,
                                   .logit_bias = bias};
    const std::vector<double> expected = reference::LogSoftmax(logits);
    const auto ranked = reference::Ranked(expected);
    for (const int num_top : {0, 1, 20, 1000}) {
      const int32_t id = SampleOne(logits, params, {4, 1}, 1, num_top);
      ASSERT_EQ(id, 2);
      EXPECT_NEAR(logprobs_.logprob, expected[id], 2e-5);
      EXPECT_EQ(ranked[logprobs_.rank - 1].first, id);
      ASSERT_EQ(logprobs_.num_top, std::min({num_top, vocab, kMaxTopLogprobs}));
      for (int i = 0; i < logprobs_.num_top; ++i) {
        EXPECT_EQ(logprobs_.top_id[i], ranked[i].first);
        EXPECT_NEAR(logprobs_.top_logprob[i], ranked[i].second, 2e-5);
      }
    }
    // A prompt's token: reported, not sampled.
    const int32_t target = vocab / 2;
    EXPECT_EQ(SampleOne(logits, params, {4, 1}, 2, 3, target), target);
    EXPECT_NEAR(logprobs_.logprob, expected[target], 2e-5);
    EXPECT_EQ(ranked[logprobs_.rank - 1].first, target);
  }
}

TEST_P(SamplingTest, ABadRowFailsAlone) {
  constexpr int kVocab = 1000, kCount = 4;
  const std::vector<float> good = MakeLogits(kVocab);
  const SamplingParams params = {.temperature = 0};
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    for (const int at : {0, 500, kVocab - 1}) {
      std::vector<float> logits;
      for (int i = 0; i < kCount; ++i) logits.insert(logits.end(), good.begin(), good.end());
      logits[2 * kVocab + at] = bad;
      std::vector<SampleRow> rows(kCount, {.params = &params, .position = 1, .prompt_len = 1});
      std::vector<int32_t> table(kCount * 2, -7), out(kCount);
      for (int i = 0; i < kCount; ++i) rows[i].slot = i;
      const absl::Status status = backend_->Sample({.logits = logits.data(),
                                                    .count = kCount,
                                                    .vocab_size = kVocab,
                                                    .rows = rows.data(),
                                                    .tokens = {table.data(), 2},
                                                    .ids_out = out.data()});
      EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
      EXPECT_THAT(std::string(status.message()), HasSubstr("row 2 "));
      const auto best =
          static_cast<int32_t>(std::max_element(good.begin(), good.end()) - good.begin());
      EXPECT_THAT(out, testing::ElementsAre(best, best, -1, best));
      EXPECT_THAT(table, testing::ElementsAre(-7, best, -7, best, -7, -7, -7, best));
    }
  }
  const std::vector<int32_t> stop = {0, 1};
  EXPECT_EQ(SampleOne({1, 2}, {.min_tokens = 5, .stop_ids = stop}, {0}, 1), -1);
  EXPECT_EQ(status_.code(), absl::StatusCode::kInternal);
}

TEST_P(SamplingTest, SameIdWhateverRowsAreBesideIt) {
  constexpr int kVocab = 3000, kCount = 17;
  std::vector<float> logits;
  std::vector<SamplingParams> params(kCount);
  std::vector<SampleRow> rows(kCount);
  std::vector<int32_t> table(kCount * 64), out(kCount), alone(kCount);
  for (int32_t& id : table) id = static_cast<int32_t>(random_() % kVocab);
  for (int i = 0; i < kCount; ++i) {
    const auto row = MakeLogits(kVocab);
    logits.insert(logits.end(), row.begin(), row.end());
    params[i] = {.top_k = i % 3 * 20,
                 .top_p = i % 2 == 0 ? 1.0f : 0.9f,
                 .repetition_penalty = 1.0f + 0.1f * static_cast<float>(i % 4),
                 .seed = random_()};
    rows[i] = {.params = &params[i], .slot = i, .position = 40 + i % 5, .prompt_len = 11};
  }
  const auto sample = [&](int first, int count, int32_t* ids) {
    std::vector<float> copy = logits;
    const absl::Status status = backend_->Sample({.logits = &copy[first * kVocab],
                                                  .count = count,
                                                  .vocab_size = kVocab,
                                                  .rows = &rows[first],
                                                  .tokens = {table.data(), 64},
                                                  .ids_out = ids});
    EXPECT_TRUE(status.ok()) << status;
  };
  sample(0, kCount, out.data());
  for (int i = 0; i < kCount; ++i) sample(i, 1, &alone[i]);
  EXPECT_EQ(out, alone);
}

INSTANTIATE_TEST_SUITE_P(Cpu, SamplingTest, testing::ValuesIn(TestBackends()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace penstock::kernels
