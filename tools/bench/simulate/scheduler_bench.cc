// What the scheduler's decisions cost a step: Batch composes it, takes up its results and completes
// it; no sockets, no shared memory, no device. Arguments: requests that run, requests that wait.
#include <benchmark/benchmark.h>
#include <malloc.h>

#include <random>

#include "tools/bench/simulate/engine.h"
#include "tools/bench/simulate/policies.h"

namespace penstock::simulate {
namespace {

using scheduler::PlanRecord;
using scheduler::Request;

constexpr uint32_t kPageSize = 16, kMaxTokens = 4096;

// So many requests wait, and as many run as their number allows (`tight` false) or as the memory
// does: then the head of the queue is looked at in every step.
class Load {
 public:
  Load(uint32_t num_running, uint32_t num_waiting, bool tight)
      : model_{num_running * 1300 / kPageSize, kPageSize, 8192, 1 << 17, 2048},
        slots_(tight ? 2 * num_running : num_running),
        arena_(slots_.size() * 8192 * 4),
        batch_(slots_, arena_),
        num_waiting_(num_waiting) {
    if (!tight) model_.num_pages *= 8;
    batch_.Reset(model_, 2048);
    TopUp();
    for (int i = 0; i < 3000; ++i) Step();
  }

  void Step() {
    batch_.Compose(++step_, &record_);
    for (const shm::PlanRow& row : record_.rows) {
      if ((row.flags & shm::kRowSample) == 0) continue;
      auto* request = static_cast<SimRequest*>(batch_.Find(row.slot, slots_[row.slot].generation));
      request->ids.push_back(1);
      if (request->num_outputs() < request->output_len) continue;
      batch_.LearnLength(*request);
      batch_.Remove(request);
      request->ids.resize(request->prompt_len);
      batch_.Enqueue(request);  // a new one
    }
    batch_.CompleteStep(step_);
  }

  size_t num_running() const { return batch_.num_running(); }
  uint64_t num_preemptions() const { return batch_.num_preemptions(); }

 private:
  void TopUp() {
    std::lognormal_distribution<double> prompt(5.9, 0.8), output(6.4, 0.7);
    for (size_t i = 0; i < num_waiting_ + slots_.size(); ++i) {
      SimRequest& request = requests_.emplace_back();
      request.ids.assign(1 + std::min(2000, static_cast<int>(prompt(random_))), 1);
      request.prompt_len = static_cast<uint32_t>(request.ids.size());
      request.output_len = 1 + std::min(4000u, static_cast<uint32_t>(output(random_)));
      request.sampling.set_max_tokens(kMaxTokens);
      batch_.Enqueue(&request);
    }
  }

  scheduler::ModelFacts model_;
  std::vector<shm::RequestSlot> slots_;
  std::vector<std::byte> arena_;
  scheduler::Batch batch_;
  size_t num_waiting_;
  std::mt19937 random_{1};
  std::deque<SimRequest> requests_;
  PlanRecord record_;
  uint64_t step_ = 0;
};

void BM_Step(benchmark::State& state, bool tight) {
  Load load(static_cast<uint32_t>(state.range(0)), static_cast<uint32_t>(state.range(1)), tight);
  uint64_t running = 0, num_steps = 0;
  const uint64_t preemptions = load.num_preemptions();
  while (state.KeepRunning()) {
    load.Step();
    running += load.num_running();
    ++num_steps;
  }
  state.counters["running"] = static_cast<double>(running) / num_steps;
  state.counters["preemptions"] = static_cast<double>(load.num_preemptions() - preemptions);
}

void Sizes(benchmark::internal::Benchmark* bench) {
  for (int running : {64, 256, 512, 1024}) {
    bench->Args({running, 100});
    bench->Args({running, 10'000});
  }
  bench->Args({1024, 100'000})->Unit(benchmark::kMicrosecond)->MinTime(1);
}

BENCHMARK_CAPTURE(BM_Step, seats_full, false)->Apply(Sizes);
BENCHMARK_CAPTURE(BM_Step, memory_full, true)->Apply(Sizes);

// The look ahead alone, at its dearest: everybody's future is summed up and the first does not fit.
void BM_Peak(benchmark::State& state) {
  std::mt19937 random(1);
  std::vector<scheduler::PeakUse::Entry> entries(state.range(0));
  for (auto& entry : entries) entry = {uint32_t(random() % 2000), uint32_t(random() % 3000)};
  scheduler::PeakUse peak;
  while (state.KeepRunning()) {
    peak.Clear();
    for (const auto& entry : entries) peak.Add(entry);
    peak.Sort();
    benchmark::DoNotOptimize(peak.PeakWith({500, 500}));
  }
}
BENCHMARK(BM_Peak)->Arg(256)->Arg(1024)->Unit(benchmark::kMicrosecond);

void BM_Expect(benchmark::State& state) {
  std::mt19937 random(1);
  scheduler::WindowEstimate estimate;
  for (int i = 0; i < 4096; ++i) estimate.Observe(1 + random() % 2000);
  uint32_t i = 0;
  while (state.KeepRunning()) {
    ++i;
    benchmark::DoNotOptimize(estimate.Expect(i * 7919 % 2000, 4096, scheduler::RankOf(i)));
  }
}
BENCHMARK(BM_Expect);

// What a request takes while it waits, beside its ids: as the engine makes it of what a router
// sends, with its place in a router's table and in the queue.
void BM_WaitingMemory(benchmark::State& state) {
  constexpr int kCount = 100'000;
  wire::Submit submit;
  submit.set_request_id("cmpl-0123456789abcdef0123456789abcdef");
  for (int i = 0; i < 500; ++i) submit.add_ids(i);
  submit.set_prompt_len(500);
  submit.set_tenant("a-tenant-with-a-name");
  submit.mutable_sampling()->set_max_tokens(1000);
  submit.mutable_sampling()->add_stop_ids(2);
  while (state.KeepRunning()) {
    std::vector<shm::RequestSlot> slots(1);
    std::vector<std::byte> arena(1 << 20);
    scheduler::Batch batch(slots, arena, scheduler::KeySecret{1, 2});
    batch.Reset({1000, kPageSize, 8192, 1 << 17, 2048}, 2048);
    const size_t before = mallinfo2().uordblks + mallinfo2().hblkhd;
    absl::flat_hash_map<uint64_t, std::unique_ptr<Request>> table;
    for (uint64_t id = 0; id < kCount; ++id) {
      std::unique_ptr<Request>& request = table[id] = scheduler::MakeRequest(submit);
      batch.Enqueue(request.get());
    }
    const size_t bytes = mallinfo2().uordblks + mallinfo2().hblkhd - before;
    state.counters["bytes"] = static_cast<double>(bytes) / kCount - 500 * sizeof(int32_t);
    for (const auto& [id, request] : table) batch.Remove(request.get());
  }
}
BENCHMARK(BM_WaitingMemory)->Iterations(1)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace penstock::simulate

BENCHMARK_MAIN();
