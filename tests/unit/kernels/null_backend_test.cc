#include "kernels/null/null_backend.h"

#include <chrono>
#include <set>

#include "gtest/gtest.h"

namespace penstock::kernels::null {
namespace {

using std::chrono::steady_clock;

TEST(NullBackendTest, SamplesOrdinaryIdsThatDependOnSeedAndPositionAlone) {
  const auto backend = MakeNullBackend({.vocab_size = 49152});
  EXPECT_FALSE(backend->needs_weights());
  const SamplingParams params{.seed = 3};
  std::set<int32_t> seen;
  for (int position = 0; position < 500; ++position) {
    const SampleRow rows[] = {{.params = &params, .slot = 3, .position = position},
                              {.params = &params, .position = position, .target_id = 77}};
    int32_t out[2];
    ASSERT_TRUE(
        backend->Sample({.count = 2, .vocab_size = 49152, .rows = rows, .ids_out = out}).ok());
    EXPECT_EQ(out[0], NullToken(3, position, 49152));
    EXPECT_EQ(out[1], 77);
    EXPECT_GE(out[0], 100);
    EXPECT_LT(out[0], 1100);
    seen.insert(out[0]);
  }
  EXPECT_GT(seen.size(), 200u);
  for (const int vocab : {1, 50, 100, 101, 500}) {
    for (int position = 0; position < 50; ++position) {
      const int32_t id = NullToken(0, position, vocab);
      EXPECT_GE(id, vocab > 100 ? 100 : 0);
      EXPECT_LT(id, vocab);
    }
  }
}

TEST(NullBackendTest, LogprobsAreZero) {
  const auto backend = MakeNullBackend({.vocab_size = 1000});
  const SamplingParams params;
  const SampleRow row = {.params = &params, .position = 4, .num_top = 2};
  int32_t id;
  SampledLogprobs logprobs;
  ASSERT_TRUE(
      backend->Sample({.count = 1, .rows = &row, .ids_out = &id, .logprobs_out = &logprobs}).ok());
  EXPECT_EQ(logprobs.logprob, 0);
  EXPECT_EQ(logprobs.rank, 1);
  ASSERT_EQ(logprobs.num_top, 2);
  EXPECT_EQ(logprobs.top_id[0], id);
  EXPECT_EQ(logprobs.top_logprob[1], 0);
}

TEST(NullBackendTest, StepsRunOneAfterAnother) {
  constexpr std::chrono::microseconds kStep(3000);
  const auto backend = MakeNullBackend({.step_us = kStep.count(), .vocab_size = 1000});
  ASSERT_EQ(backend->max_steps_in_flight(), 2);
  const auto begin = steady_clock::now();
  for (int step = 0; step < 2; ++step) {
    ASSERT_TRUE(backend->BeginStep({}).ok());
    ASSERT_TRUE(backend->Embed({}).ok());
    ASSERT_TRUE(backend->EndStep().ok());
  }
  for (int step = 1; step <= 2; ++step) {
    const StepReport report = backend->WaitStep().value();
    EXPECT_GE(steady_clock::now() - begin, step * kStep);
    EXPECT_EQ(report.run_ns, std::chrono::nanoseconds(kStep).count());
    EXPECT_EQ(report.idle_ns, 0);
  }
}

TEST(NullBackendTest, IdleTimeIsFromAStepsEndToTheNextsBegin) {
  const auto backend = MakeNullBackend({.step_us = 1000, .vocab_size = 1000});
  ASSERT_TRUE(backend->BeginStep({}).ok());
  ASSERT_TRUE(backend->WaitStep().ok());
  const auto ended = steady_clock::now();
  while (steady_clock::now() - ended < std::chrono::milliseconds(2)) {
  }
  ASSERT_TRUE(backend->BeginStep({}).ok());
  EXPECT_GE(backend->WaitStep().value().idle_ns, 2'000'000);
}

TEST(NullBackendTest, WeightsKeepTheirShape) {
  const auto backend = MakeNullBackend({.vocab_size = 1000});
  const WeightSegment segments[] = {{.rows = 8, .cols = 64}, {.rows = 4, .cols = 64}};
  const auto weight = backend->LoadWeight(segments, WeightUse::kLinear).value();
  EXPECT_EQ(weight->rows, 12);
  EXPECT_EQ(weight->cols, 64);
  EXPECT_EQ(backend->WeightRows(*weight, 4, 5).value()->rows, 5);
  const auto buffer = backend->Allocate(4096).value();
  for (int i = 0; i < 4096; ++i) ASSERT_EQ(buffer->as<char>()[i], 0);
}

}  // namespace
}  // namespace penstock::kernels::null
