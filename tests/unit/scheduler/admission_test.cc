// Batch, policy and estimate on a device that answers at once: who comes in, who is preempted, and
// that everybody ends, however wrong the estimate is.
#include <gtest/gtest.h>

#include <cmath>
#include <deque>
#include <random>

#include "common/log.h"
#include "scheduler/batch.h"

namespace penstock::scheduler {
namespace {

// Believes that everybody ends with the next id.
class Optimist : public LengthEstimate {
 public:
  void Observe(uint32_t) override {}
  uint32_t Expect(uint32_t generated, uint32_t max_tokens, uint32_t) const override {
    return std::min(max_tokens, generated + 1);
  }
};

struct TestRequest : Request {
  uint32_t output = 0;  // ids after which it stops
};

// An engine whose plans run two ahead of the results.
class Engine {
 public:
  Engine(uint32_t num_pages, uint32_t num_slots)
      : model_{num_pages, 4, 4096, 1000, 256},
        slots_(num_slots),
        arena_(1 << 22),
        batch(slots_, arena_) {
    batch.Reset(model_, 256);
  }

  void Submit(uint32_t prompt, uint32_t output, uint32_t max_tokens) {
    TestRequest& request = requests.emplace_back();
    request.id = requests.size();
    request.ids.assign(prompt, 1);
    request.prompt_len = prompt;
    request.output = output;
    request.sampling.set_max_tokens(static_cast<int32_t>(max_tokens));
    batch.Enqueue(&request);
  }

  // One step; false if there is nothing more to do.
  bool Step() {
    PlanRecord record;
    while (in_flight_.size() < 2 && batch.Compose(next_step_, &record)) {
      in_flight_.push_back({next_step_++, {}});
      for (const shm::PlanRow& row : record.rows) {
        if ((row.flags & shm::kRowSample) == 0) continue;
        in_flight_.back().second.push_back({row.slot, slots_[row.slot].generation});
      }
    }
    if (in_flight_.empty()) return false;
    for (const shm::PlanSlot& row : in_flight_.front().second) {
      auto* request = static_cast<TestRequest*>(batch.Find(row.slot, row.generation));
      if (request == nullptr) continue;
      request->ids.push_back(2);
      if (request->num_outputs() < request->output &&
          EndAfterLastId(*request, model_) == wire::END_NONE) {
        continue;
      }
      batch.LearnLength(*request);
      batch.Remove(request);
      ended.push_back(request->id);
    }
    batch.CompleteStep(in_flight_.front().first);
    in_flight_.pop_front();
    ++num_steps;
    return true;
  }

 private:
  ModelFacts model_;
  std::vector<shm::RequestSlot> slots_;
  std::vector<std::byte> arena_;
  std::deque<std::pair<uint64_t, std::vector<shm::PlanSlot>>> in_flight_;
  uint64_t next_step_ = 1;

 public:
  Batch batch;
  std::deque<TestRequest> requests;
  std::vector<uint64_t> ended;
  uint64_t num_steps = 0;
};

// An estimate that is always too low lets in everybody, and they push each other out all the time.
// All end nevertheless, and in no more steps than if they had come one by one.
TEST(AdmissionTest, WhoeverIsPreemptedMakesProgress) {
  Engine engine(30, 16);  // 120 tokens; a request takes up to 84
  engine.batch.UseAdmission(Admission::kLookAhead, std::make_unique<Optimist>(), 0);
  const uint64_t kOneByOne = 100 * (80 + 4);
  for (int i = 0; i < 100; ++i) engine.Submit(4, 80, 80);
  while (engine.Step()) {
    engine.batch.CheckInvariants();
    ASSERT_LE(engine.num_steps, kOneByOne);
  }
  EXPECT_EQ(engine.ended.size(), 100u);
  EXPECT_GT(engine.batch.num_preemptions(), 100u);
}

// The oldest waiting request is never passed by more than those that ran before it: with a flood
// of short ones behind it, a long one that is preempted still ends.
TEST(AdmissionTest, ALongRequestIsNotStarvedByShortOnes) {
  Engine engine(40, 16);
  engine.batch.UseAdmission(Admission::kLookAhead, std::make_unique<Optimist>(), 0);
  for (int i = 0; i < 3; ++i) engine.Submit(8, 60, 60);
  engine.Submit(8, 140, 140);  // id 4
  for (int i = 0; i < 300; ++i) engine.Submit(8, 30, 30);
  while (engine.Step()) {
  }
  ASSERT_EQ(engine.ended.size(), 304u);
  const auto at = std::find(engine.ended.begin(), engine.ended.end(), 4u) - engine.ended.begin();
  std::printf("ended as number %ld, preempted %u times\n", at + 1,
              engine.requests[3].num_preemptions);
  // While it runs for 140 steps, at most 15 others do at a time, each for 30 steps or more.
  EXPECT_LT(at, 100);
}

// With an estimate and a margin that have learnt, fewer than 1% are preempted and memory is used;
// with a watermark alone, many are.
TEST(AdmissionTest, LookingAheadSparesPreemptions) {
  constexpr size_t kLearn = 4000, kRequests = 20'000;
  uint64_t preemptions[2];
  double use = 0;
  for (bool look_ahead : {false, true}) {
    Engine engine(4000, 1024);
    if (!look_ahead) {
      engine.batch.UseAdmission(Admission::kWatermark, std::make_unique<WindowEstimate>(), 0.01);
    }
    std::mt19937 random(11);
    std::lognormal_distribution<double> length(4.5, 0.7);
    double num_samples = 0;
    uint64_t before = 0;
    use = 0;
    do {
      while (engine.batch.num_waiting() < 64 && engine.requests.size() < kRequests) {
        const double output = std::min(1 + length(random), 1000.0);
        engine.Submit(20, static_cast<uint32_t>(output), 1000);
      }
      if (engine.ended.size() < kLearn) before = engine.batch.num_preemptions();
      if (engine.ended.size() >= kLearn && engine.requests.size() < kRequests) {
        use += engine.batch.PageUsage();
        ++num_samples;
      }
    } while (engine.Step());
    EXPECT_EQ(engine.ended.size(), kRequests);
    preemptions[look_ahead] = engine.batch.num_preemptions() - before;
    use /= num_samples;
    std::printf("look ahead %d: %lu preempted (%lu while learning), KV use %.3f\n", look_ahead,
                preemptions[look_ahead], before, use);
  }
  EXPECT_LT(preemptions[1], (kRequests - kLearn) / 100);
  EXPECT_GT(preemptions[0], 10 * preemptions[1]);
  EXPECT_GT(use, 0.85);  // some 110 run: the estimate strays more than among 800
}

}  // namespace
}  // namespace penstock::scheduler
