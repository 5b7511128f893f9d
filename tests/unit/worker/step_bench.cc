// How fast a worker does steps: spawns penstock-worker processes and drives them as a scheduler
// would, with `depth` plans in flight. Prints one JSON line a case.
//
//   worker_step_bench MODEL|null RANKS THREADS DTYPE BATCH[,BATCH...] [DEPTH] [STEPS] [PROMPT]
#include <fmt/core.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/log.h"
#include "tests/unit/worker/plan_driver.h"
#include "tests/unit/worker/worker_process.h"

namespace penstock::worker {
namespace {

struct Case {
  int batch = 1, depth = 2, steps = 200, prompt = 32;
};

DriverRequest MakeRequest(int prompt, int seed) {
  DriverRequest request;
  request.sampling = GreedySampling();
  request.ids.reserve(prompt);
  for (int i = 0; i < prompt; ++i) request.ids.push_back(100 + (i * 7919 + seed * 131) % 20000);
  return request;
}

// Prefills, then decodes `steps` steps; returns seconds of each.
absl::StatusOr<std::pair<double, double>> RunCase(PlanDriver* driver, const Case& c) {
  std::vector<uint32_t> slots;
  const int max_tokens = static_cast<int>(driver->segment().rank(0).max_num_batched_tokens.load());
  for (int i = 0; i < c.batch; ++i) {
    slots.push_back(driver->Add(MakeRequest(c.prompt, i), c.prompt + c.steps + 1));
  }
  int64_t begin = shm::MonotonicNs();
  int i = 0;
  while (i < c.batch) {  // as many prompts a step as its budget takes
    std::vector<shm::PlanRow> rows;
    for (int budget = max_tokens; i < c.batch && budget >= c.prompt; budget -= c.prompt, ++i) {
      rows.push_back({slots[i], 0, static_cast<uint32_t>(c.prompt), shm::kRowSample});
    }
    RETURN_IF_ERROR(driver->Step(rows).status());
  }
  const double prefill = static_cast<double>(shm::MonotonicNs() - begin) * 1e-9;
  auto submit = [&](int step) {
    std::vector<shm::PlanRow> rows;
    rows.reserve(slots.size());
    for (const uint32_t slot : slots) {
      rows.push_back({slot, static_cast<uint32_t>(c.prompt + step), 1, shm::kRowSample});
    }
    driver->Submit(rows);
  };
  begin = shm::MonotonicNs();
  for (int step = 0; step < std::min(c.depth, c.steps); ++step) submit(step);
  for (int step = 0; step < c.steps; ++step) {
    for (int rank = 0; rank < driver->num_ranks(); ++rank) {
      RETURN_IF_ERROR(driver->Result(rank).status());
    }
    if (step + c.depth < c.steps) submit(step + c.depth);
  }
  const double decode = static_cast<double>(shm::MonotonicNs() - begin) * 1e-9;
  for (const uint32_t slot : slots) driver->Release(slot);
  RETURN_IF_ERROR(driver->Step({}).status());
  return std::pair{prefill, decode};
}

int Int(const char* text) {
  int value = 0;
  CHECK(absl::SimpleAtoi(text, &value));
  return value;
}

int Main(int argc, char** argv) {
  if (argc < 6) {
    fmt::print(stderr,
               "usage: {} MODEL|null RANKS THREADS DTYPE BATCHES [DEPTH] [STEPS] [PROMPT]\n",
               argv[0]);
    return 2;
  }
  const std::string model = argv[1];
  const int ranks = Int(argv[2]);
  shm::Geometry geometry;
  geometry.num_ranks = static_cast<uint32_t>(ranks);
  if (ranks > 1) geometry.collective_bytes = 8 << 20;
  const std::string engine = fmt::format("bench-{}", getpid());
  auto driver = PlanDriver::Create(engine, geometry);
  CHECK(driver.ok());
  std::vector<WorkerProcess> workers;
  for (int rank = 0; rank < ranks; ++rank) {
    std::vector<std::string> flags = {fmt::format("--threads={}", argv[3]),
                                      fmt::format("--dtype={}", argv[4])};
    if (model == "null") {
      flags.push_back("--device=null");
    } else {
      flags.push_back("--model=" + model);
    }
    workers.push_back(WorkerProcess::Start(engine, rank, flags));
  }
  absl::Status status = (*driver)->WaitReady(120'000);
  if (status.ok()) status = (*driver)->Reset();
  for (const auto batch : absl::StrSplit(argv[5], ',')) {
    if (!status.ok()) break;
    Case c;
    c.batch = Int(std::string(batch).c_str());
    if (argc > 6) c.depth = Int(argv[6]);
    if (argc > 7) c.steps = Int(argv[7]);
    if (argc > 8) c.prompt = Int(argv[8]);
    const auto seconds = RunCase(driver->get(), c);
    status = seconds.status();
    if (!status.ok()) break;
    fmt::print(
        "{{\"model\": \"{}\", \"ranks\": {}, \"threads\": {}, \"dtype\": \"{}\", \"batch\": {}, "
        "\"prompt\": {}, \"prefill_tokens_per_s\": {:.1f}, \"steps\": {}, \"steps_per_s\": {:.1f}, "
        "\"decode_tokens_per_s\": {:.1f}}}\n",
        model, ranks, argv[3], argv[4], c.batch, c.prompt, c.batch * c.prompt / seconds->first,
        c.steps, c.steps / seconds->second, c.steps * c.batch / seconds->second);
  }
  if (!status.ok()) fmt::print(stderr, "{}\n", Message(status));
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace penstock::worker

int main(int argc, char** argv) { return penstock::worker::Main(argc, argv); }
