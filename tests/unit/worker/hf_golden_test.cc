// Tiny Hugging Face checkpoints through penstock-worker, against what transformers makes of them in
// float32 (tests/golden/hf, tools/golden/hf_golden.py).
#include <gtest/gtest.h>

#include <cstring>

#include "common/status.h"
#include "tests/unit/worker/golden_engine.h"

namespace penstock::worker {
namespace {

// Every passage of a checkpoint's golden file, through as many ranks.
std::vector<PromptLogprobs> Score(const std::string& name, const nlohmann::json& golden,
                                  int num_ranks, const std::string& dtype) {
  GoldenEngine engine(
      {"--model=" + HfCheckpoint(name), "--dtype=" + dtype, "--threads=1", "--num-kv-pages=100"},
      num_ranks);
  if (!engine.ok()) return {};
  std::vector<DriverRequest> requests;
  for (const auto& passage : golden["passages"]) requests.push_back(RequestOf(passage["ids"]));
  return ScorePrompts(engine.driver(), requests, 150);
}

class HfGoldenTest : public testing::TestWithParam<std::string> {
 protected:
  // How far log-probabilities may be off, and the share of positions whose likeliest id must be the
  // reference's; it may differ where the reference's own second is nearer than `tie`.
  void ExpectGolden(const std::string& dtype, double tolerance, double agreement,
                    double tie) const {
    const Deviation deviation = Deviate(Score(GetParam(), golden_, 1, dtype), golden_["passages"]);
    fmt::print("{}, {}\n", dtype, ToString(deviation));
    EXPECT_LT(deviation.largest, tolerance);
    EXPECT_GE(deviation.top1, agreement);
    EXPECT_LT(deviation.widest_miss, tie);
  }

  const nlohmann::json golden_ = ReadGolden("hf/" + GetParam());
};

TEST_P(HfGoldenTest, Float32) { ExpectGolden("float32", 1e-3, 0.99, 1e-3); }

TEST_P(HfGoldenTest, Fast) { ExpectGolden("auto", 0.3, 0.95, 0.2); }

TEST_P(HfGoldenTest, TwoRanksHaveTheSameBits) {
  const auto one = Score(GetParam(), golden_, 1, "float32");
  const auto two = Score(GetParam(), golden_, 2, "float32");
  ASSERT_EQ(one.size(), golden_["passages"].size());
  ASSERT_EQ(one.size(), two.size());
  for (size_t p = 0; p < one.size(); ++p) {
    ASSERT_EQ(one[p].size(), two[p].size());
    for (size_t i = 0; i < one[p].size(); ++i) {
      EXPECT_EQ(std::memcmp(&one[p][i].row.logprob, &two[p][i].row.logprob, sizeof(float)), 0);
      EXPECT_EQ(one[p][i].top.at(0).token_id, two[p][i].top.at(0).token_id);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, HfGoldenTest, testing::Values("tied", "untied_sharded"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace penstock::worker
