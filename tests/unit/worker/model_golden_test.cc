// The real model (SmolLM2-135M-Instruct, Q4_1) through penstock-worker, against what transformers
// makes of it in float32 (tests/golden, tools/golden), and against itself in other batches.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "common/status.h"
#include "tests/unit/worker/golden_engine.h"

namespace penstock::worker {
namespace {

using nlohmann::json;

std::vector<std::string> Flags(const std::string& dtype) {
  return {"--model=" + SmolLmPath(), "--dtype=" + dtype, "--num-kv-pages=600",
          "--max-model-len=2048"};
}

json Golden(const std::string& folder) { return ReadGolden(folder + "/smollm2_135m_q4_1"); }

class ModelGoldenTest : public testing::TestWithParam<const char*> {};

TEST_P(ModelGoldenTest, TeacherForcedLogprobs) {
  GoldenEngine engine(Flags(GetParam()));
  ASSERT_TRUE(engine.ok());
  const json passages = Golden("logprobs")["passages"];
  std::vector<PromptLogprobs> scored;
  for (const json& passage : passages) {
    for (PromptLogprobs& rows : ScorePrompts(engine.driver(), {RequestOf(passage["ids"])}, 512)) {
      scored.push_back(std::move(rows));
    }
  }
  const Deviation deviation = Deviate(scored, passages);
  fmt::print("{}: {}\n", GetParam(), ToString(deviation));
  EXPECT_GE(deviation.positions, 2000);
  EXPECT_GE(deviation.top1, 0.98);
  EXPECT_NEAR(deviation.perplexity() / deviation.want_perplexity(), 1, 0.005);
  if (std::string_view(GetParam()) == "float32") {
    EXPECT_LT(deviation.largest, 0.01);
  }
}

// A continuation may leave the golden one only where the reference itself nearly tied.
TEST_P(ModelGoldenTest, Greedy) {
  GoldenEngine engine(Flags(GetParam()));
  ASSERT_TRUE(engine.ok());
  const double tie = std::string_view(GetParam()) == "float32" ? 0.01 : 0.5;
  int same = 0, total = 0;
  const json golden = Golden("greedy");
  for (const json& prompt : golden["prompts"]) {
    const auto want = prompt["output_ids"].get<std::vector<int32_t>>();
    const auto margin = prompt["margin"].get<std::vector<double>>();
    const auto got = Generate(engine.driver(), {RequestOf(prompt["prompt_ids"])},
                              static_cast<int>(want.size()), 512);
    ASSERT_TRUE(got.ok()) << got.status();
    const auto differs = std::mismatch(want.begin(), want.end(), (*got)[0].begin()).first;
    ++total;
    same += differs == want.end() ? 1 : 0;
    if (differs == want.end()) continue;
    const auto at = static_cast<size_t>(differs - want.begin());
    EXPECT_LT(margin[at], tie) << prompt["prompt"] << " differs at output " << at;
  }
  fmt::print("{}: {} of {} greedy continuations are the golden ones\n", GetParam(), same, total);
}

INSTANTIATE_TEST_SUITE_P(Modes, ModelGoldenTest, testing::Values("float32", "auto"),
                         [](const auto& info) { return std::string(info.param); });

// Of one request, alone.
std::vector<float> Logprobs(PlanDriver* driver, const DriverRequest& request, int chunk) {
  std::vector<float> logprobs;
  for (const PromptLogprobs& rows : ScorePrompts(driver, {request}, chunk)) {
    for (const StepResult::Row& row : rows) logprobs.push_back(row.row.logprob);
  }
  return logprobs;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

struct Runs {
  std::vector<std::vector<int32_t>> alone, batch, chunk_1, chunk_7, chunk_64;
  std::vector<float> logprobs, logprobs_in_chunks;
};

Runs RunAll(int num_ranks, const std::string& dtype, const std::vector<DriverRequest>& requests) {
  Runs run;
  GoldenEngine engine(Flags(dtype), num_ranks);
  if (!engine.ok()) return run;
  constexpr int kNewIds = 24;
  auto generate = [&](const std::vector<DriverRequest>& some, int chunk) {
    auto ids = Generate(engine.driver(), some, kNewIds, chunk);
    EXPECT_TRUE(ids.ok()) << ids.status();
    return ids.ok() ? *std::move(ids) : std::vector<std::vector<int32_t>>();
  };
  for (const DriverRequest& request : requests) {
    const auto ids = generate({request}, 512);
    if (ids.empty()) return run;
    run.alone.push_back(ids[0]);
  }
  run.batch = generate(requests, 32);
  run.chunk_1 = generate(requests, 1);
  run.chunk_7 = generate(requests, 7);
  run.chunk_64 = generate({requests.begin(), requests.begin() + 8}, 64);
  run.logprobs = Logprobs(engine.driver(), requests[0], 512);
  run.logprobs_in_chunks = Logprobs(engine.driver(), requests[0], 7);
  return run;
}

std::vector<DriverRequest> SixteenRequests() {
  std::vector<DriverRequest> requests;
  const json passages = Golden("logprobs")["passages"];
  for (int i = 0; i < 16; ++i) {
    DriverRequest request = RequestOf(passages[i % passages.size()]["ids"]);
    request.ids.resize(std::min<size_t>(request.ids.size(), 20 + 9 * i));
    if (i % 2 == 1) {
      request.sampling.temperature = 0.8f;
      request.sampling.top_p = 0.95f;
      request.sampling.seed = 1000 + i;
    }
    requests.push_back(std::move(request));
  }
  return requests;
}

int NumSame(const std::vector<std::vector<int32_t>>& a,
            const std::vector<std::vector<int32_t>>& b) {
  int same = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) same += a[i] == b[i] ? 1 : 0;
  return same;
}

TEST(ModelInvarianceTest, Float32HasTheSameBitsEverywhere) {
  const std::vector<DriverRequest> requests = SixteenRequests();
  const Runs one = RunAll(1, "float32", requests);
  ASSERT_EQ(one.alone.size(), 16u);
  EXPECT_EQ(one.batch, one.alone);
  EXPECT_EQ(one.chunk_1, one.alone);
  EXPECT_EQ(one.chunk_7, one.alone);
  EXPECT_EQ(one.chunk_64, (std::vector(one.alone.begin(), one.alone.begin() + 8)));
  EXPECT_TRUE(SameBits(one.logprobs, one.logprobs_in_chunks));
  const Runs three = RunAll(3, "float32", requests);
  EXPECT_EQ(three.alone, one.alone);
  EXPECT_EQ(three.batch, one.alone);
  EXPECT_EQ(three.chunk_7, one.alone);
  EXPECT_TRUE(SameBits(three.logprobs, one.logprobs));
}

// The fast mode promises nothing but says how often it differs; its ranks must still agree.
TEST(ModelInvarianceTest, FastModeAgreesAmongItsRanks) {
  const std::vector<DriverRequest> requests = SixteenRequests();
  const Runs one = RunAll(1, "auto", requests);
  const Runs three = RunAll(3, "auto", requests);
  ASSERT_EQ(one.alone.size(), 16u);
  ASSERT_EQ(three.alone.size(), 16u);
  fmt::print(
      "auto: of 16 requests as alone on one rank: batch {}, chunks of 1 {}, chunks of 7 {}, three "
      "ranks {}\n",
      NumSame(one.batch, one.alone), NumSame(one.chunk_1, one.alone),
      NumSame(one.chunk_7, one.alone), NumSame(three.alone, one.alone));
}

}  // namespace
}  // namespace penstock::worker
