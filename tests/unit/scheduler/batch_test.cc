// Batch and policy against a simulated device that checks every plan as a rank would, over random
// traces: arrivals (of prompts of which many begin alike, and forks of one prompt, in three
// classes, of four tenants), stops, cancels, preemptions, deaths. Accounts are checked after every
// step.
#include "scheduler/batch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <deque>
#include <map>
#include <random>

#include "common/log.h"
#include "tests/unit/scheduler/shadow_rank.h"

namespace penstock::scheduler {
namespace {

class Simulation {
 public:
  static constexpr uint32_t kMaxTokens = 64;

  Simulation(uint32_t seed, uint32_t num_slots, uint64_t arena_bytes, ModelFacts model, int depth,
             bool sharing)
      : random_(seed),
        model_(model),
        depth_(depth),
        slots_(num_slots),
        arena_(arena_bytes),
        batch_(slots_, arena_,
               sharing ? std::optional(KeySecret{random_(), random_()}) : std::nullopt),
        rank_(slots_, arena_, model) {
    // Looking ahead, few are preempted: half of the traces must do without.
    if (seed % 2 == 0) {
      batch_.UseAdmission(Admission::kWatermark, std::make_unique<WindowEstimate>(), 0.01);
    }
    for (std::vector<int32_t>& ids : beginnings_) {
      for (uint32_t i = 0; i < model.max_model_len / 2; ++i) ids.push_back(RandomId());
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

  uint64_t longest_stay = 0;  // steps, from arrival to the end
  uint64_t num_finished = 0, num_cancelled = 0, num_deaths = 0, num_failed = 0, num_steps = 0;
  const Batch& batch() const { return batch_; }
  const ShadowRank& rank() const { return rank_; }

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
    std::vector<int32_t> ids;
    const uint32_t prompt_len = 1 + random_() % (model_.max_model_len / 2);
    // Mostly it begins as others do; some of these are whole conversations that ended.
    if (random_() % 4 > 0) ids = beginnings_[random_() % beginnings_.size()];
    ids.resize(std::min<size_t>(random_() % (2 * prompt_len), ids.size()));
    while (ids.size() < prompt_len) ids.push_back(RandomId());
    ids.resize(prompt_len);
    const int num_forks = random_() % 8 == 0 ? 2 + static_cast<int>(random_() % 5) : 1;
    for (int i = 0; i < num_forks; ++i) Submit(ids);
  }

  void Submit(const std::vector<int32_t>& ids) {
    auto request = std::make_unique<Request>();
    request->id = ++next_id_;
    request->ids = ids;
    request->prompt_len = static_cast<uint32_t>(ids.size());
    request->cache_salt = SaltOf(request->id);
    request->priority = static_cast<uint8_t>(random_() % 8 == 0 ? 1 + random_() % 2 : 0);
    request->tenant = std::string(random_() % 4, 't');
    request->wants_prompt_logprobs = random_() % 16 == 0;
    request->skip_prefix_cache = random_() % 16 == 0;
    wire::Sampling& sampling = request->sampling;
    sampling.set_seed(request->id);
    sampling.set_max_tokens(static_cast<int32_t>(1 + random_() % model_.max_model_len));
    sampling.set_min_tokens(static_cast<int32_t>(random_() % 4));
    sampling.add_stop_ids(7);
    sampling.add_stop_ids(8);
    batch_.Enqueue(request.get());
    arrived_step_[request->id] = num_steps;
    live_[request->id] = std::move(request);
  }

  int32_t RandomId() { return static_cast<int32_t>(random_() % 1000); }

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
    in_flight_.push_back({next_step_, rank_.Run(next_step_, record, kMaxTokens)});
    ++next_step_;
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
      CHECK(request->cached_tokens < request->prompt_len);
      CHECK(request->cached_tokens == 0 || !request->skip_prefix_cache);
      batch_.LearnLength(*request);
      beginnings_[random_() % beginnings_.size()] = request->ids;
      batch_.Remove(request);
      longest_stay = std::max(longest_stay, num_steps - arrived_step_[request->id]);
      live_.erase(request->id);
      ++num_finished;
    }
    batch_.CompleteStep(in_flight_.front().step);
    rank_.CompleteStep(in_flight_.front().step);
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
  std::map<uint64_t, uint64_t> arrived_step_;
  std::deque<InFlight> in_flight_;
  uint64_t next_step_ = 1;
  uint64_t next_id_ = 0;
  std::array<std::vector<int32_t>, 6> beginnings_;
};

struct TraceParam {
  const char* name;
  uint32_t num_slots;
  uint64_t arena_bytes;
  ModelFacts model;
  int depth;
  bool sharing = true;
};

class BatchTraceTest : public ::testing::TestWithParam<TraceParam> {};

TEST_P(BatchTraceTest, KeepsItsAccounts) {
  const TraceParam& param = GetParam();
  const auto seed = std::random_device()();
  std::printf("seed %u\n", seed);
  Simulation simulation(seed, param.num_slots, param.arena_bytes, param.model, param.depth,
                        param.sharing);
  for (int step = 0; step < 100'000; ++step) simulation.Step();
  simulation.Finish();
  const PrefixStats& prefixes = simulation.batch().prefix_stats();
  std::printf(
      "steps %lu finished %lu cancelled %lu preempted %lu deaths %lu failed %lu prefix hits %lu of "
      "%lu copies %lu longest stay %lu\n",
      simulation.num_steps, simulation.num_finished, simulation.num_cancelled,
      simulation.batch().num_preemptions(), simulation.num_deaths, simulation.num_failed,
      prefixes.hits, prefixes.queries, simulation.rank().num_copies, simulation.longest_stay);
  EXPECT_GT(simulation.num_finished, 500u);
  EXPECT_GT(simulation.num_deaths, 0u);
  // Nobody starves, though new requests never cease. (60 at once, of at most 128 steps each, one
  // after another, would take 7,680.)
  EXPECT_LT(simulation.longest_stay, 10'000u);
  EXPECT_EQ(prefixes.hits > 100, param.sharing);
  // With one slot nobody runs of whom another could copy; a page of one id has nothing to copy.
  EXPECT_EQ(simulation.rank().num_copies > 10,
            param.sharing && param.num_slots > 1 && param.model.page_size > 1);
  EXPECT_LT(prefixes.hits, prefixes.queries + !param.sharing);
}

INSTANTIATE_TEST_SUITE_P(
    Traces, BatchTraceTest,
    ::testing::Values(TraceParam{"roomy", 16, 1 << 20, {400, 8, 128, 1000, 64}, 2},
                      TraceParam{"few_pages", 16, 1 << 20, {24, 8, 128, 1000, 64}, 2},
                      TraceParam{
                          "fewer_pages_than_a_context", 8, 1 << 20, {9, 8, 128, 1000, 64}, 2},
                      TraceParam{"small_arena", 16, 2048, {60, 8, 128, 1000, 64}, 2},
                      TraceParam{"one_slot", 1, 1 << 20, {40, 4, 64, 1000, 64}, 2},
                      TraceParam{"pages_of_one_token", 8, 1 << 20, {90, 1, 64, 1000, 64}, 2},
                      TraceParam{"no_overlap", 16, 1 << 20, {24, 8, 128, 1000, 64}, 1},
                      TraceParam{"nothing_shared", 16, 1 << 20, {24, 8, 128, 1000, 64}, 2, false}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace penstock::scheduler
