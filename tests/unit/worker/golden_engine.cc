#include "tests/unit/worker/golden_engine.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>

#include "common/status.h"

namespace penstock::worker {

using nlohmann::json;

std::string SourceFile(const std::string& path) {
  const char* folder = std::getenv("PENSTOCK_SOURCE_DIR");
  return std::string(folder != nullptr ? folder : PENSTOCK_SOURCE_DIR) + "/" + path;
}

json ReadGolden(const std::string& name) {
  const std::string path = SourceFile("tests/golden/" + name + ".json");
  std::ifstream file(path);
  EXPECT_TRUE(file.good()) << path;
  return json::parse(file);
}

std::string HfCheckpoint(const std::string& name) { return SourceFile("tests/golden/hf/" + name); }

std::string SmolLmPath() {
  const char* folder = std::getenv("PENSTOCK_MODEL_DIR");
  const char* home = std::getenv("HOME");
  const std::string models =
      folder != nullptr ? folder
                        : std::string(home != nullptr ? home : "") + "/.cache/penstock/models";
  return models + "/SmolLM2-135M-Instruct.Q4_1.gguf";
}

GoldenEngine::GoldenEngine(const std::vector<std::string>& worker_flags, int num_ranks,
                           int num_slots) {
  shm::Geometry geometry;
  geometry.num_ranks = static_cast<uint32_t>(num_ranks);
  geometry.num_slots = static_cast<uint32_t>(num_slots);
  if (num_ranks > 1) geometry.collective_bytes = 4 << 20;
  const std::string engine = fmt::format("golden-{}", getpid());
  auto driver = PlanDriver::Create(engine, geometry);
  EXPECT_TRUE(driver.ok()) << driver.status();
  if (!driver.ok()) return;
  driver_ = *std::move(driver);
  workers_.reserve(num_ranks);
  for (int rank = 0; rank < num_ranks; ++rank) {
    workers_.push_back(WorkerProcess::Start(engine, rank, worker_flags));
  }
  absl::Status ready = driver_->WaitReady(240'000);
  if (ready.ok()) ready = driver_->Reset();
  EXPECT_TRUE(ready.ok()) << ready
                          << "\nIf SmolLM2 is missing: tools/deps/model fetches it, or set "
                          << "PENSTOCK_MODEL_DIR.";
  ok_ = ready.ok();
}

DriverRequest RequestOf(std::vector<int32_t> ids) {
  DriverRequest request;
  request.ids = std::move(ids);
  request.sampling = GreedySampling();
  return request;
}

std::vector<PromptLogprobs> ScorePrompts(PlanDriver* driver,
                                         const std::vector<DriverRequest>& requests, int chunk) {
  struct State {
    uint32_t slot, size, done;
  };
  std::vector<State> states;
  std::map<uint32_t, size_t> index_of_slot;
  for (DriverRequest request : requests) {
    request.sampling.num_prompt_logprobs = 1;
    const auto size = static_cast<uint32_t>(request.ids.size());
    states.push_back({driver->Add(request, static_cast<int>(size)), size, 0});
    index_of_slot[states.back().slot] = states.size() - 1;
  }
  std::vector<PromptLogprobs> scored(requests.size());
  while (true) {
    std::vector<shm::PlanRow> rows;
    for (State& state : states) {
      const uint32_t n = std::min(static_cast<uint32_t>(chunk), state.size - state.done);
      if (n == 0) continue;
      rows.push_back({state.slot, state.done, n, shm::kRowPromptLogprobs});
      state.done += n;
    }
    if (rows.empty()) break;
    auto result = driver->Step(rows);
    EXPECT_TRUE(result.ok()) << result.status();
    if (!result.ok()) return {};
    for (StepResult::Row& row : result->rows) {
      scored[index_of_slot[row.row.slot]].push_back(std::move(row));
    }
  }
  for (const State& state : states) driver->Release(state.slot);
  EXPECT_TRUE(driver->Step({}).ok());
  return scored;
}

double Deviation::perplexity() const { return std::exp(-sum / positions); }
double Deviation::want_perplexity() const { return std::exp(-want_sum / positions); }

namespace {

void AddPosition(double got, double want, Deviation* deviation) {
  const double difference = std::isnan(got) ? HUGE_VAL : std::abs(got - want);
  ++deviation->positions;
  deviation->sum += got;
  deviation->want_sum += want;
  deviation->rms += difference * difference;  // the sum, until Finish
  deviation->largest = std::max(deviation->largest, difference);
}

Deviation Finish(Deviation deviation) {
  deviation.rms = std::sqrt(deviation.rms / deviation.positions);
  return deviation;
}

}  // namespace

Deviation Deviate(const std::vector<PromptLogprobs>& got, const json& passages) {
  Deviation deviation;
  EXPECT_EQ(got.size(), passages.size());
  for (size_t p = 0; p < std::min(got.size(), passages.size()); ++p) {
    const auto want = passages[p]["logprob"].get<std::vector<double>>();
    const auto top1 = passages[p]["top1_id"].get<std::vector<int32_t>>();
    EXPECT_EQ(got[p].size(), want.size()) << "passage " << p;
    for (size_t i = 0; i < std::min(got[p].size(), want.size()); ++i) {
      AddPosition(got[p][i].row.logprob, want[i], &deviation);
      if (got[p][i].top.at(0).token_id == top1[i]) {
        deviation.top1 += 1;
        continue;
      }
      const double margin = passages[p].contains("margin")
                                ? passages[p]["margin"][i].get<double>()
                                : passages[p]["top1_logprob"][i].get<double>() -
                                      passages[p]["top2_logprob"][i].get<double>();
      deviation.widest_miss = std::max(deviation.widest_miss, margin);
    }
  }
  deviation.top1 /= deviation.positions;
  return Finish(deviation);
}

Deviation Deviate(const std::vector<float>& got, const std::vector<float>& want) {
  Deviation deviation;
  EXPECT_EQ(got.size(), want.size());
  for (size_t i = 0; i < std::min(got.size(), want.size()); ++i) {
    AddPosition(got[i], want[i], &deviation);
  }
  deviation.top1 = -1;
  return Finish(deviation);
}

std::string ToString(const Deviation& d) {
  const std::string top1 = d.top1 < 0 ? ""
                                      : fmt::format(", top-1 {:.3f} % (widest miss {:.4f})",
                                                    100 * d.top1, d.widest_miss);
  return fmt::format("{} positions: rms {:.5f}, largest {:.5f}{}, perplexity {:.5f} ({:+.4f} %)",
                     d.positions, d.rms, d.largest, top1, d.perplexity(),
                     100 * (d.perplexity() / d.want_perplexity() - 1));
}

}  // namespace penstock::worker
