// What recording costs the engine's thread a step: a Batch of running decodes, composed, taken up
// and completed, without a recorder and with one that writes a file. Google Benchmark.
#include <benchmark/benchmark.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "common/log.h"
#include "scheduler/record/recorded_batch.h"

namespace penstock::scheduler {
namespace {

constexpr uint32_t kMaxModelLen = 1 << 20;

class Engine {
 public:
  // `path`: to record to; empty: not.
  Engine(uint32_t num_running, const std::string& path)
      : slots_(num_running),
        arena_(num_running * 4096),
        batch_(slots_, arena_, KeySecret{1, 2}, path.empty() ? nullptr : MakeRecorder(path)) {
    batch_.Reset(1,
                 {.num_pages = num_running * 4096,
                  .page_size = 16,
                  .max_model_len = kMaxModelLen,
                  .vocab_size = 128'256,
                  .max_num_batched_tokens = 8192},
                 8192);
    for (uint32_t id = 1; id <= num_running; ++id) {
      wire::Submit submit;
      submit.set_id(id);
      submit.set_prompt_len(16);
      for (int i = 0; i < 16; ++i) submit.add_ids(static_cast<int32_t>(id + i));
      submit.mutable_sampling()->set_max_tokens(kMaxModelLen);
      requests_.push_back(MakeRequest(submit));
      batch_.Enqueue(requests_.back().get(), submit);
    }
  }

  void Step() {
    batch_.HandOver();
    CHECK(batch_.Compose(step_, &record_));
    batch_.HandOver();
    batch_.BeginResults({.num_rows = static_cast<uint32_t>(record_.rows.size()), .step = step_});
    for (const shm::PlanRow& row : record_.rows) {
      const uint32_t generation = slots_[row.slot].generation;
      batch_.NoteResult({.slot = row.slot,
                         .generation = generation,
                         .token_id = static_cast<int32_t>(step_ % 128'256),
                         .position = static_cast<int32_t>(row.start + row.num_tokens)});
      Request* request = batch_.Find(row.slot, generation);
      request->ids.push_back(static_cast<int32_t>(step_ % 128'256));
    }
    batch_.CompleteStep(step_++);
  }

 private:
  static std::unique_ptr<Recorder> MakeRecorder(const std::string& path) {
    return Recorder::Create(path, {}).value();
  }

  std::vector<shm::RequestSlot> slots_;
  std::vector<std::byte> arena_;
  RecordedBatch batch_;
  std::vector<std::unique_ptr<Request>> requests_;
  PlanRecord record_;
  uint64_t step_ = 1;
};

void BM_DecodeStep(benchmark::State& state) {
  const bool recording = state.range(1) != 0;
  const std::string path =
      recording ? fmt::format("{}/record-bench-{}", std::filesystem::temp_directory_path().string(),
                              getpid())
                : "";
  uint64_t num_steps = 0;
  {
    Engine engine(static_cast<uint32_t>(state.range(0)), path);
    engine.Step();
    while (state.KeepRunning()) {
      engine.Step();
      ++num_steps;
    }
  }
  if (!recording) return;
  state.counters["file_bytes"] =
      static_cast<double>(std::filesystem::file_size(path)) / static_cast<double>(num_steps);
  std::filesystem::remove(path);
}
BENCHMARK(BM_DecodeStep)
    ->ArgNames({"running", "recording"})
    ->ArgsProduct({{1, 64, 256, 1024}, {0, 1}})
    ->Iterations(10'000)
    ->Unit(benchmark::kMicrosecond);

// A request of so many ids comes in: its copy for the file.
void BM_Enqueue(benchmark::State& state) {
  const std::string path =
      fmt::format("{}/record-bench-{}", std::filesystem::temp_directory_path().string(), getpid());
  std::vector<shm::RequestSlot> slots(1);
  std::vector<std::byte> arena(4096);
  wire::Submit submit;
  submit.set_prompt_len(static_cast<int32_t>(state.range(0)));
  for (int i = 0; i < state.range(0); ++i) submit.add_ids(i);
  {
    RecordedBatch batch(slots, arena, std::nullopt,
                        state.range(1) != 0 ? Recorder::Create(path, {}).value() : nullptr);
    const std::unique_ptr<Request> request = MakeRequest(submit);
    while (state.KeepRunning()) {
      batch.Enqueue(request.get(), submit);
      batch.Remove(request.get());
      batch.HandOver();
    }
  }
  std::filesystem::remove(path);
}
BENCHMARK(BM_Enqueue)
    ->ArgNames({"ids", "recording"})
    ->ArgsProduct({{1000, 100'000}, {0, 1}})
    ->Iterations(1000)
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace penstock::scheduler

BENCHMARK_MAIN();
