// Batch and policy against a simulated device that checks every plan as a rank would, over random
// traces: arrivals, stops, cancels, preemptions, deaths. Accounts are checked after every step.
#include "scheduler/batch.h"

#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <random>
#include <set>

#include "common/log.h"

namespace penstock::scheduler {
namespace {

// The id at a position is a function of seed and position, as on a real device.
int32_t IdAt(uint64_t seed, uint32_t position) {
  return static_cast<int32_t>((seed * 7919 + position * 104729) % 1000);
}

struct Result {
  uint32_t slot, generation, position;
  int32_t id;
};

// Carries plans out in order, at once when asked to, and checks what a rank relies on.
class ShadowRank {
 public:
  ShadowRank(std::span<shm::RequestSlot> slots, std::span<std::byte> arena, uint32_t page_size)
      : slots_(slots), arena_(arena), page_size_(page_size), bound_(slots.size()) {}

  void Reset() { bound_.assign(slots_.size(), Bound{}); }

  std::vector<Result> Run(const PlanRecord& record, uint32_t max_tokens) {
    for (const auto& release : record.releases) {
      CHECK(bound_[release.slot].generation == release.generation);
      bound_[release.slot] = Bound{};
    }
    for (const auto& bind : record.binds) Bind(bind);
    for (const auto& append : record.appends) bound_[append.slot].pages.push_back(append.page);
    std::set<uint32_t> pages;  // no page is in two slots
    for (const Bound& bound : bound_) {
      for (uint32_t page : bound.pages) CHECK(pages.insert(page).second);
    }
    std::vector<Result> results;
    uint32_t num_tokens = 0;
    for (const auto& row : record.rows) {
      Bound& bound = bound_[row.slot];
      const uint32_t end = row.start + row.num_tokens;
      CHECK(bound.generation != 0 && row.num_tokens > 0);
      CHECK(row.start == bound.computed && end <= bound.ids.size());
      CHECK(end <= bound.pages.size() * page_size_);
      bound.computed = end;
      num_tokens += row.num_tokens;
      if ((row.flags & shm::kRowSample) == 0) continue;
      CHECK(end == bound.ids.size());
      bound.ids.push_back(IdAt(slots_[row.slot].sampling.seed, end));
      results.push_back({row.slot, bound.generation, end, bound.ids.back()});
    }
    CHECK(num_tokens <= max_tokens);
    return results;
  }

 private:
  struct Bound {
    uint32_t generation = 0;
    uint32_t computed = 0;
    std::vector<int32_t> ids;
    std::vector<uint32_t> pages;
  };

  void Bind(const shm::PlanSlot& bind) {
    const shm::RequestSlot& slot = slots_[bind.slot];
    Bound& bound = bound_[bind.slot];
    CHECK(bound.generation == 0 && slot.generation == bind.generation);
    const auto* ids = reinterpret_cast<const int32_t*>(arena_.data() + slot.ids_offset);
    bound = {bind.generation, 0, {ids, ids + slot.known_len}, {}};
    for (uint32_t i = slot.prompt_len; i < slot.known_len; ++i) {
      CHECK(ids[i] == IdAt(slot.sampling.seed, i));
    }
    // Its stop ids are where the record says: 7 and 8.
    const auto* stops =
        reinterpret_cast<const int32_t*>(arena_.data() + slot.sampling.stop_ids_offset);
    CHECK(slot.sampling.num_stop_ids == 2 && stops[0] == 7 && stops[1] == 8);
  }

  std::span<shm::RequestSlot> slots_;
  std::span<std::byte> arena_;
  uint32_t page_size_;
  std::vector<Bound> bound_;
};

class Simulation {
 public:
  static constexpr uint32_t kMaxTokens = 64;

  Simulation(uint32_t seed, uint32_t num_slots, uint64_t arena_bytes, ModelFacts model, int depth)
      : random_(seed),
        model_(model),
        depth_(depth),
        slots_(num_slots),
        arena_(arena_bytes),
        batch_(slots_, arena_),
        rank_(slots_, arena_, model.page_size) {
    // Looking ahead, few are preempted: half of the traces must do without.
    if (seed % 2 == 0) {
      batch_.UseAdmission(Admission::kWatermark, std::make_unique<WindowEstimate>(), 0.01);
    }
    Reset();
  }

  void Step() {
    const uint32_t dice = random_() % 1000;
    if (live_.size() < 60 && dice < 300) Arrive();
    if (dice >= 300 && dice < 330) CancelOne();
    if (dice == 999) Die();
    if (in_flight_.size() < depth_) Publish();
    // Results lag behind plans by up to the depth; sometimes several come at once.
    while (!in_flight_.empty() && (in_flight_.size() == depth_ || random_() % 3 == 0)) Complete();
    batch_.CheckInvariants();
  }

  // Lets all that is there end.
  void Finish() {
    for (int idle = 0; idle < 3; idle = live_.empty() && batch_.AllFree() ? idle + 1 : 0) {
      while (in_flight_.size() < depth_ && Publish()) {
      }
      CHECK(!in_flight_.empty() || (live_.empty() && batch_.AllFree()));
      if (!in_flight_.empty()) Complete();
      batch_.CheckInvariants();
    }
  }

  uint64_t num_finished = 0, num_cancelled = 0, num_deaths = 0, num_failed = 0, num_steps = 0;
  const Batch& batch() const { return batch_; }

 private:
  struct InFlight {
    uint64_t step;
    std::vector<Result> results;
  };

  void Reset() {
    rank_.Reset();
    batch_.Reset(model_, kMaxTokens);
    next_step_ = 1;
  }

  void Arrive() {
    auto request = std::make_unique<Request>();
    request->id = ++next_id_;
    request->prompt_len = 1 + random_() % (model_.max_model_len / 2);
    for (uint32_t i = 0; i < request->prompt_len; ++i) {
      request->ids.push_back(static_cast<int32_t>(random_() % 1000));
    }
    wire::Sampling& sampling = request->sampling;
    sampling.set_seed(request->id);
    sampling.set_max_tokens(static_cast<int32_t>(1 + random_() % model_.max_model_len));
    sampling.set_min_tokens(static_cast<int32_t>(random_() % 4));
    sampling.add_stop_ids(7);
    sampling.add_stop_ids(8);
    batch_.Enqueue(request.get());
    live_[request->id] = std::move(request);
  }

  void CancelOne() {
    if (live_.empty()) return;
    auto victim = live_.lower_bound(random_() % (next_id_ + 1));
    if (victim == live_.end()) victim = live_.begin();
    batch_.Remove(victim->second.get());
    live_.erase(victim);
    ++num_cancelled;
  }

  void Die() {
    std::vector<Request*> failed;
    batch_.LoseRanks(&failed);
    for (Request* request : failed) {
      CHECK(request->num_deaths >= 2);
      live_.erase(request->id);
      ++num_failed;
    }
    CHECK(batch_.AllFree() && batch_.num_waiting() == live_.size());
    in_flight_.clear();
    Reset();
    ++num_deaths;
  }

  bool Publish() {
    PlanRecord record;
    if (!batch_.Compose(next_step_, &record)) return false;
    batch_.CheckInvariants();
    in_flight_.push_back({next_step_++, rank_.Run(record, kMaxTokens)});
    ++num_steps;
    return true;
  }

  void Complete() {
    for (const Result& result : in_flight_.front().results) {
      Request* request = batch_.Find(result.slot, result.generation);
      if (request == nullptr) continue;
      CHECK(request->ids.size() == result.position);
      CHECK(result.id == IdAt(request->sampling.seed(), result.position));
      request->ids.push_back(result.id);
      if (EndAfterLastId(*request, model_) == wire::END_NONE) continue;
      CHECK(request->ids.size() <= LengthLimit(*request, model_));
      batch_.LearnLength(*request);
      batch_.Remove(request);
      live_.erase(request->id);
      ++num_finished;
    }
    batch_.CompleteStep(in_flight_.front().step);
    in_flight_.pop_front();
  }

  std::mt19937 random_;
  ModelFacts model_;
  size_t depth_;
  std::vector<shm::RequestSlot> slots_;
  std::vector<std::byte> arena_;
  Batch batch_;
  ShadowRank rank_;
  std::map<uint64_t, std::unique_ptr<Request>> live_;
  std::deque<InFlight> in_flight_;
  uint64_t next_step_ = 1;
  uint64_t next_id_ = 0;
};

struct TraceParam {
  const char* name;
  uint32_t num_slots;
  uint64_t arena_bytes;
  ModelFacts model;
  int depth;
};

class BatchTraceTest : public ::testing::TestWithParam<TraceParam> {};

TEST_P(BatchTraceTest, KeepsItsAccounts) {
  const TraceParam& param = GetParam();
  const auto seed = std::random_device()();
  std::printf("seed %u\n", seed);
  Simulation simulation(seed, param.num_slots, param.arena_bytes, param.model, param.depth);
  for (int step = 0; step < 40'000; ++step) simulation.Step();
  simulation.Finish();
  std::printf("steps %lu finished %lu cancelled %lu preempted %lu deaths %lu failed %lu\n",
              simulation.num_steps, simulation.num_finished, simulation.num_cancelled,
              simulation.batch().num_preemptions(), simulation.num_deaths, simulation.num_failed);
  EXPECT_GT(simulation.num_finished, 500u);
  EXPECT_GT(simulation.num_deaths, 0u);
}

INSTANTIATE_TEST_SUITE_P(
    Traces, BatchTraceTest,
    ::testing::Values(TraceParam{"roomy", 16, 1 << 20, {1000, 8, 128, 1000, 64}, 2},
                      TraceParam{"few_pages", 16, 1 << 20, {24, 8, 128, 1000, 64}, 2},
                      TraceParam{
                          "fewer_pages_than_a_context", 8, 1 << 20, {9, 8, 128, 1000, 64}, 2},
                      TraceParam{"small_arena", 16, 2048, {60, 8, 128, 1000, 64}, 2},
                      TraceParam{"one_slot", 1, 1 << 20, {40, 4, 64, 1000, 64}, 2},
                      TraceParam{"pages_of_one_token", 8, 1 << 20, {90, 1, 64, 1000, 64}, 2},
                      TraceParam{"no_overlap", 16, 1 << 20, {24, 8, 128, 1000, 64}, 1}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace penstock::scheduler
