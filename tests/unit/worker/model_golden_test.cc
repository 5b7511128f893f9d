// The real model (SmolLM2-135M-Instruct, Q4_1) through penstock-worker, against what transformers
// makes of it in float32 (tests/golden, tools/golden), and against itself in other batches.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "common/status.h"
#include "tests/unit/worker/plan_driver.h"
#include "tests/unit/worker/worker_process.h"

namespace penstock::worker {
namespace {

using nlohmann::json;

std::string ModelPath() {
  const char* folder = std::getenv("PENSTOCK_MODEL_DIR");
  const char* home = std::getenv("HOME");
  const std::string models =
      folder != nullptr ? folder
                        : std::string(home != nullptr ? home : "") + "/.cache/penstock/models";
  return models + "/SmolLM2-135M-Instruct.Q4_1.gguf";
}

json Golden(const std::string& folder) {
  std::ifstream file(std::string(PENSTOCK_SOURCE_DIR) + "/tests/golden/" + folder +
                     "/smollm2_135m_q4_1.json");
  return json::parse(file);
}

// Workers with the model, ready in a fresh epoch.
class Engine {
 public:
  Engine(int num_ranks, const std::string& dtype) {
    shm::Geometry geometry;
    geometry.num_ranks = static_cast<uint32_t>(num_ranks);
    geometry.num_slots = 32;
    if (num_ranks > 1) geometry.collective_bytes = 4 << 20;
    const std::string engine = fmt::format("golden-{}", getpid());
    auto driver = PlanDriver::Create(engine, geometry);
    EXPECT_TRUE(driver.ok()) << driver.status();
    if (!driver.ok()) return;
    driver_ = *std::move(driver);
    for (int rank = 0; rank < num_ranks; ++rank) {
      workers_.push_back(WorkerProcess::Start(engine, rank,
                                              {"--model=" + ModelPath(), "--dtype=" + dtype,
                                               "--num-kv-pages=600", "--max-model-len=2048"}));
    }
    const absl::Status ready = driver_->WaitReady(240'000);
    EXPECT_TRUE(ready.ok()) << ready << "\nThis test needs the model: run tools/test, which "
                            << "fetches it, or set PENSTOCK_MODEL_DIR.";
    ok_ = ready.ok() && driver_->Reset().ok();
  }
  bool ok() const { return ok_; }
  PlanDriver* driver() { return driver_.get(); }

 private:
  bool ok_ = false;
  std::unique_ptr<PlanDriver> driver_;
  std::vector<WorkerProcess> workers_;
};

DriverRequest RequestOf(const json& ids) {
  DriverRequest request;
  request.ids = ids.get<std::vector<int32_t>>();
  request.sampling = GreedySampling();
  return request;
}

// The prompt's log-probabilities with the best id each.
std::vector<StepResult::Row> PromptRows(PlanDriver* driver, DriverRequest request, int chunk) {
  request.sampling.num_prompt_logprobs = 1;
  const int size = static_cast<int>(request.ids.size());
  const uint32_t slot = driver->Add(request, size);
  std::vector<StepResult::Row> rows;
  for (int begin = 0; begin < size; begin += chunk) {
    const auto n = static_cast<uint32_t>(std::min(chunk, size - begin));
    auto result = driver->Step({{slot, static_cast<uint32_t>(begin), n, shm::kRowPromptLogprobs}});
    EXPECT_TRUE(result.ok()) << result.status();
    if (!result.ok()) return {};
    for (StepResult::Row& row : result->rows) rows.push_back(std::move(row));
  }
  driver->Release(slot);
  EXPECT_TRUE(driver->Step({}).ok());
  return rows;
}

class ModelGoldenTest : public testing::TestWithParam<const char*> {};

TEST_P(ModelGoldenTest, TeacherForcedLogprobs) {
  Engine engine(1, GetParam());
  ASSERT_TRUE(engine.ok());
  const json golden = Golden("logprobs");
  int positions = 0, same_top = 0;
  double sum = 0, golden_sum = 0, largest = 0;
  for (const json& passage : golden["passages"]) {
    const auto rows = PromptRows(engine.driver(), RequestOf(passage["ids"]), 512);
    const auto logprob = passage["logprob"].get<std::vector<double>>();
    const auto top1 = passage["top1_id"].get<std::vector<int32_t>>();
    ASSERT_EQ(rows.size(), logprob.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      ++positions;
      same_top += rows[i].top.at(0).token_id == top1[i] ? 1 : 0;
      sum += rows[i].row.logprob;
      golden_sum += logprob[i];
      largest = std::max(largest, std::abs(rows[i].row.logprob - logprob[i]));
    }
  }
  const double perplexity = std::exp(-sum / positions);
  const double golden_perplexity = std::exp(-golden_sum / positions);
  const double agreement = static_cast<double>(same_top) / positions;
  fmt::print(
      "{}: {} positions, top-1 agreement {:.3f} %, perplexity {:.5f} (golden {:.5f}, {:+.4f} %), "
      "largest difference of a log-probability {:.5f}\n",
      GetParam(), positions, 100 * agreement, perplexity, golden_perplexity,
      100 * (perplexity / golden_perplexity - 1), largest);
  EXPECT_GE(positions, 2000);
  EXPECT_GE(agreement, 0.98);
  EXPECT_NEAR(perplexity / golden_perplexity, 1, 0.005);
  if (std::string_view(GetParam()) == "float32") {
    EXPECT_LT(largest, 0.01);
  }
}

// A continuation may leave the golden one only where the reference itself nearly tied.
TEST_P(ModelGoldenTest, Greedy) {
  Engine engine(1, GetParam());
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

std::vector<float> Logprobs(const std::vector<StepResult::Row>& rows) {
  std::vector<float> logprobs;
  logprobs.reserve(rows.size());
  for (const StepResult::Row& row : rows) logprobs.push_back(row.row.logprob);
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
  Engine engine(num_ranks, dtype);
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
  run.logprobs = Logprobs(PromptRows(engine.driver(), requests[0], 512));
  run.logprobs_in_chunks = Logprobs(PromptRows(engine.driver(), requests[0], 7));
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
