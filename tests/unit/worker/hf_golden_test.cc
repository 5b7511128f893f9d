// Tiny Hugging Face checkpoints through penstock-worker, against what transformers makes of them in
// float32 (tests/golden/hf, tools/golden/hf_golden.py).
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "common/status.h"
#include "tests/unit/worker/plan_driver.h"
#include "tests/unit/worker/worker_process.h"

namespace penstock::worker {
namespace {

using nlohmann::json;

std::string Golden(const std::string& name) {
  return std::string(PENSTOCK_SOURCE_DIR) + "/tests/golden/hf/" + name;
}

struct Position {
  float logprob;
  int32_t top1_id;
};

// Every position of every passage, through as many ranks.
std::vector<Position> Score(const std::string& name, const json& golden, int num_ranks,
                            const std::string& dtype) {
  shm::Geometry geometry;
  geometry.num_ranks = static_cast<uint32_t>(num_ranks);
  geometry.num_slots = 8;
  if (num_ranks > 1) geometry.collective_bytes = 4 << 20;
  const std::string engine = fmt::format("hf-golden-{}", getpid());
  auto driver = PlanDriver::Create(engine, geometry);
  EXPECT_TRUE(driver.ok()) << driver.status();
  if (!driver.ok()) return {};
  std::vector<WorkerProcess> workers;
  workers.reserve(num_ranks);
  for (int rank = 0; rank < num_ranks; ++rank) {
    workers.push_back(WorkerProcess::Start(
        engine, rank,
        {"--model=" + Golden(name), "--dtype=" + dtype, "--threads=1", "--num-kv-pages=100"}));
  }
  absl::Status ready = (*driver)->WaitReady(120'000);
  if (ready.ok()) ready = (*driver)->Reset();
  EXPECT_TRUE(ready.ok()) << ready;
  if (!ready.ok()) return {};

  std::vector<Position> positions;
  for (const json& passage : golden["passages"]) {
    DriverRequest request;
    request.ids = passage["ids"].get<std::vector<int32_t>>();
    request.sampling = GreedySampling();
    request.sampling.num_prompt_logprobs = 1;
    const auto size = static_cast<uint32_t>(request.ids.size());
    const uint32_t slot = (*driver)->Add(request, static_cast<int>(size));
    const auto result = (*driver)->Step({{slot, 0, size, shm::kRowPromptLogprobs}});
    EXPECT_TRUE(result.ok()) << result.status();
    if (!result.ok()) return {};
    for (const StepResult::Row& row : result->rows) {
      positions.push_back({row.row.logprob, row.top.at(0).token_id});
    }
    (*driver)->Release(slot);
    EXPECT_TRUE((*driver)->Step({}).ok());
  }
  return positions;
}

class HfGoldenTest : public testing::TestWithParam<const char*> {
 protected:
  HfGoldenTest() {
    std::ifstream file(Golden(GetParam()) + ".json");
    golden_ = json::parse(file);
  }
  // How far log-probabilities may be off, and the share of positions whose likeliest id must be the
  // reference's; it may differ where the reference's own second is nearer than `tie`.
  void ExpectGolden(const std::vector<Position>& got, double tolerance, double agreement,
                    double tie) const {
    size_t at = 0, same = 0;
    double largest = 0;
    for (const json& passage : golden_["passages"]) {
      const auto logprob = passage["logprob"].get<std::vector<double>>();
      const auto top1 = passage["top1_id"].get<std::vector<int32_t>>();
      const auto margin = passage["margin"].get<std::vector<double>>();
      ASSERT_LE(at + logprob.size(), got.size());
      for (size_t i = 0; i < logprob.size(); ++i, ++at) {
        largest = std::max(largest, std::abs(got[at].logprob - logprob[i]));
        same += got[at].top1_id == top1[i] ? 1 : 0;
        EXPECT_TRUE(got[at].top1_id == top1[i] || margin[i] < tie) << "position " << i;
      }
    }
    EXPECT_EQ(at, got.size());
    const double share = static_cast<double>(same) / static_cast<double>(at);
    fmt::print("{} positions, top-1 agreement {:.2f} %, largest difference {:.6f}\n", at,
               100 * share, largest);
    EXPECT_LT(largest, tolerance);
    EXPECT_GE(share, agreement);
  }

  json golden_;
};

TEST_P(HfGoldenTest, Float32) {
  ExpectGolden(Score(GetParam(), golden_, 1, "float32"), 1e-3, 0.99, 1e-3);
}

TEST_P(HfGoldenTest, Fast) { ExpectGolden(Score(GetParam(), golden_, 1, "auto"), 0.3, 0.95, 0.2); }

TEST_P(HfGoldenTest, TwoRanksHaveTheSameBits) {
  const auto one = Score(GetParam(), golden_, 1, "float32");
  const auto two = Score(GetParam(), golden_, 2, "float32");
  ASSERT_FALSE(one.empty());
  ASSERT_EQ(one.size(), two.size());
  EXPECT_EQ(std::memcmp(one.data(), two.data(), one.size() * sizeof(Position)), 0);
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, HfGoldenTest, testing::Values("tied", "untied_sharded"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace penstock::worker
