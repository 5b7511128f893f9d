// What a step costs the scheduler's one thread, without processes: Batch composes it, takes up its
// ids and completes it, two steps ahead, while requests end and others come. And what the prefix
// tree costs a page. Google Benchmark; see --help for filters and JSON.
#include <benchmark/benchmark.h>

#include <array>
#include <deque>
#include <memory>
#include <random>
#include <vector>

#include "common/log.h"
#include "scheduler/batch.h"

namespace penstock::scheduler {
namespace {

constexpr uint32_t kNumPages = 100'000, kPageSize = 16;
constexpr int kPromptLen = 256, kCommonLen = 128, kOutputLen = 512;

// `num_running` requests of 256 to 768 ids, and `num_waiting` behind them, for ever. Half of every
// prompt is one of 16 beginnings.
class Engine {
 public:
  Engine(size_t num_running, size_t num_waiting, bool sharing)
      : num_live_(num_running + num_waiting),
        slots_(num_running),
        arena_(num_running * 8192),
        batch_(slots_, arena_, sharing ? std::optional(KeySecret{1, 2}) : std::nullopt) {
    batch_.Reset({kNumPages, kPageSize, 8192, 128'256, 2048}, 2048);
    for (auto& ids : beginnings_) {
      while (ids.size() < kCommonLen) ids.push_back(RandomId());
    }
    while (requests_.size() < num_live_) Arrive();
  }

  void Step() {
    CHECK(batch_.Compose(step_, &record_));
    in_flight_.push_back(record_.rows);
    generations_.emplace_back();
    for (const shm::PlanRow& row : record_.rows) {
      generations_.back().push_back(slots_[row.slot].generation);
    }
    ++step_;
    if (in_flight_.size() < 2) return;
    for (size_t i = 0; i < in_flight_.front().size(); ++i) {
      const shm::PlanRow& row = in_flight_.front()[i];
      if ((row.flags & shm::kRowSample) == 0) continue;
      Request* request = batch_.Find(row.slot, generations_.front()[i]);
      if (request == nullptr) continue;
      request->ids.push_back(RandomId());
      if (request->num_outputs() < kOutputLen) continue;
      batch_.Remove(request);
      std::swap(requests_[request->id], requests_.back());
      requests_[request->id]->id = request->id;
      requests_.pop_back();
      Arrive();
    }
    in_flight_.pop_front();
    generations_.pop_front();
    batch_.CompleteStep(step_ - 2);
    num_rows += record_.rows.size();
  }

  const Batch& batch() const { return batch_; }
  uint64_t num_rows = 0;

 private:
  void Arrive() {
    auto request = std::make_unique<Request>();
    request->id = requests_.size();  // its place there
    request->prompt_len = kPromptLen;
    request->ids = beginnings_[random_() % beginnings_.size()];
    while (request->ids.size() < kPromptLen) request->ids.push_back(RandomId());
    // So that they do not all end in one step.
    request->sampling.set_max_tokens(kOutputLen);
    if (step_ == 1) {
      for (uint32_t i = random_() % kOutputLen; i > 0; --i) request->ids.push_back(1);
    }
    batch_.Enqueue(request.get());
    requests_.push_back(std::move(request));
  }

  int32_t RandomId() { return static_cast<int32_t>(random_() % 128'256); }

  const size_t num_live_;
  std::minstd_rand random_{1};
  std::array<std::vector<int32_t>, 16> beginnings_;
  std::vector<shm::RequestSlot> slots_;
  std::vector<std::byte> arena_;
  Batch batch_;
  std::vector<std::unique_ptr<Request>> requests_;
  uint64_t step_ = 1;
  PlanRecord record_;
  std::deque<std::vector<shm::PlanRow>> in_flight_;
  std::deque<std::vector<uint32_t>> generations_;
};

void BM_Step(benchmark::State& state) {
  Engine engine(state.range(0), state.range(1), state.range(2) != 0);
  for (int i = 0; i < 2000; ++i) engine.Step();  // until what is cached fills the pages
  const uint64_t rows = engine.num_rows;
  const PrefixStats before = engine.batch().prefix_stats();
  while (state.KeepRunning()) engine.Step();
  const PrefixStats& after = engine.batch().prefix_stats();
  state.counters["rows"] = benchmark::Counter(static_cast<double>(engine.num_rows - rows),
                                              benchmark::Counter::kAvgIterations);
  state.counters["cached_pages"] = engine.batch().num_cached_pages();
  const auto queries = static_cast<double>(after.queries - before.queries);
  if (queries > 0)
    state.counters["hit_rate"] = static_cast<double>(after.hits - before.hits) / queries;
}
BENCHMARK(BM_Step)
    ->ArgNames({"running", "waiting", "sharing"})
    ->ArgsProduct({{64, 256, 1024}, {10'000}, {0, 1}})
    ->Iterations(20'000)
    ->Unit(benchmark::kMicrosecond);

// One page's key: SipHash of 80 bytes.
void BM_NextKey(benchmark::State& state) {
  const std::array<int32_t, kPageSize> ids = {};
  PageKey key;
  while (state.KeepRunning()) benchmark::DoNotOptimize(key = NextKey({1, 2}, key, ids));
}
BENCHMARK(BM_NextKey);

// What those cost in each step who wait for a prompt that is just being computed: 64 of them, of
// 1,000 ids.
void BM_HeldBack(benchmark::State& state) {
  KvPages pages(KeySecret{1, 2});
  pages.Reset(kNumPages, kPageSize);
  std::vector<Request> requests(65);
  for (Request& request : requests) {
    request.ids.assign(1000, 7);
    request.prompt_len = 1000;
  }
  pages.BeginPlan();
  pages.TakePrefix(&requests[0], pages.FindPrefix(&requests[0]));
  while (state.KeepRunning()) {
    pages.BeginPlan();
    for (size_t i = 1; i < requests.size(); ++i)
      CHECK(pages.FindPrefix(&requests[i]).being_computed);
  }
}
BENCHMARK(BM_HeldBack)->Unit(benchmark::kMicrosecond);

// Of a full tree: as a request of 64 pages comes, finds the first 32 of them, has 32 evicted, and
// leaves. A time a request, that is 128 pages matched, taken, evicted or put in.
void BM_TreeChurn(benchmark::State& state) {
  const auto num_pages = static_cast<uint32_t>(state.range(0));
  PrefixTree tree(num_pages);
  std::mt19937_64 random(1);
  std::vector<std::array<PageKey, 32>> beginnings(num_pages / 320 + 1);
  for (auto& keys : beginnings) {
    for (PageKey& key : keys) key = {random(), random()};
  }
  std::vector<uint32_t> pages, freed;
  std::array<PageKey, 64> keys;
  uint32_t num_used = 0;
  auto request = [&] {
    const auto& beginning = beginnings[random() % beginnings.size()];
    std::copy(beginning.begin(), beginning.end(), keys.begin());
    for (size_t i = 32; i < 64; ++i) keys[i] = {random(), random()};
    const uint32_t found = tree.Longest(keys).num_pages;
    pages.clear();
    tree.Acquire(std::span(keys).first(found), &pages);
    while (pages.size() < 64) {
      if (!freed.empty()) {
        pages.push_back(freed.back());
        freed.pop_back();
      } else {
        pages.push_back(num_used < num_pages ? num_used++ : tree.Evict());
      }
    }
    tree.Release(pages, found, std::span(keys).subspan(found), &freed);
  };
  for (uint32_t i = 0; i < num_pages / 16; ++i) request();
  while (state.KeepRunning()) request();
}
BENCHMARK(BM_TreeChurn)->Arg(1000)->Arg(10'000)->Arg(100'000)->Arg(1'000'000);

}  // namespace
}  // namespace penstock::scheduler

BENCHMARK_MAIN();
