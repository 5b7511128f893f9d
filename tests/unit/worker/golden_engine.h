// An engine of penstock-workers that a golden test asks for log-probabilities, and what references
// outside Penstock said of them (tests/golden, tools/golden). Used on the CPU and on the GPU.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/unit/worker/plan_driver.h"
#include "tests/unit/worker/worker_process.h"

namespace penstock::worker {

// A file of the repository; of $PENSTOCK_SOURCE_DIR where that is set, since programs of a bundle
// run elsewhere.
std::string SourceFile(const std::string& path);
nlohmann::json ReadGolden(const std::string& name);  // tests/golden/<name>.json
std::string HfCheckpoint(const std::string& name);   // tests/golden/hf/<name>
// SmolLM2-135M-Instruct, Q4_1, which tools/deps/model fetches.
std::string SmolLmPath();

// Workers with a model, ready in a fresh epoch. A failure to start is the test's.
class GoldenEngine {
 public:
  // worker_flags: --model and whatever else.
  explicit GoldenEngine(const std::vector<std::string>& worker_flags, int num_ranks = 1,
                        int num_slots = 32);
  bool ok() const { return ok_; }
  PlanDriver* driver() { return driver_.get(); }

 private:
  bool ok_ = false;
  std::unique_ptr<PlanDriver> driver_;
  std::vector<WorkerProcess> workers_;
};

// Greedy, with this prompt.
DriverRequest RequestOf(std::vector<int32_t> ids);

// The log-probabilities of each request's ids but the first, with the likeliest id each. All
// requests run together, in chunks of `chunk` ids; with 1 as when they are generated. Empty when a
// step failed, which fails the test.
using PromptLogprobs = std::vector<StepResult::Row>;
std::vector<PromptLogprobs> ScorePrompts(PlanDriver* driver,
                                         const std::vector<DriverRequest>& requests, int chunk);

// How far log-probabilities are from a reference's.
struct Deviation {
  int positions = 0;
  double rms = 0, largest = 0;
  double top1 = 0;         // share of positions whose likeliest id is the reference's; -1: unknown
  double widest_miss = 0;  // of the other positions: the reference's largest margin
  double sum = 0, want_sum = 0;  // of the log-probabilities
  double perplexity() const;
  double want_perplexity() const;
};
// `passages` of a golden file: ids, logprob, top1_id, and margin or the likeliest two's logprobs.
Deviation Deviate(const std::vector<PromptLogprobs>& got, const nlohmann::json& passages);
// Between two lists as long as each other; top1 stays unknown.
Deviation Deviate(const std::vector<float>& got, const std::vector<float>& want);
std::string ToString(const Deviation& deviation);

}  // namespace penstock::worker
