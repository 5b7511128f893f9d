#include "scheduler/policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace penstock::scheduler {

bool operator==(const PlannedRow& a, const PlannedRow& b) {
  return a.index == b.index && a.start == b.start && a.num_tokens == b.num_tokens &&
         a.sample == b.sample;
}
void PrintTo(const PlannedRow& row, std::ostream* os) {
  *os << "{" << row.index << ", " << row.start << ", " << row.num_tokens << ", " << row.sample
      << "}";
}

namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Expects an output of `rank` ids: a test says what is expected of each request.
class GivenLengths : public LengthEstimate {
 public:
  void Observe(uint32_t) override {}
  uint32_t Expect(uint32_t generated, uint32_t max_tokens, uint32_t rank) const override {
    return std::min(max_tokens, std::max(generated + 1, rank));
  }
};

// A decode with its pages (of 4 tokens) full or not, as `computed` has it.
RunningView Decode(uint32_t computed, uint64_t last_step = 1) {
  return {computed, computed + 1, 1000, PagesFor(computed, 4), last_step};
}

class PolicyTest : public ::testing::Test {
 protected:
  const StepPlan& Make() {
    state.running = running;
    state.waiting = waiting;
    state.page_size = page_size;
    state.lengths = &lengths;
    Plan(state, budget, &plan);
    return plan;
  }
  std::vector<RunningView> running;
  std::vector<WaitingView> waiting;
  uint32_t page_size = 4;
  GivenLengths lengths;
  PolicyState state{.free_pages = 100, .free_slots = 10};
  Budget budget{.max_tokens = 20, .watermark_pages = 2};
  StepPlan plan;
};

TEST_F(PolicyTest, NothingToDo) {
  EXPECT_THAT(Make().rows, IsEmpty());
  EXPECT_EQ(plan.admitted.size(), 0u);
}

TEST_F(PolicyTest, DecodesFirstThenChunksThenAdmission) {
  running = {{0, 15, 100, 4, 0}, Decode(7), Decode(9)};
  waiting = {{2}, {9}, {3}};
  EXPECT_THAT(Make().rows, ElementsAre(PlannedRow{1, 7, 1, true}, PlannedRow{2, 9, 1, true},
                                       PlannedRow{0, 0, 15, true}, PlannedRow{3, 0, 2, true},
                                       PlannedRow{4, 0, 1, false}));
  EXPECT_EQ(plan.admitted.size(), 2u);
}

TEST_F(PolicyTest, AChunkGoesOnWhereItEnded) {
  budget.max_tokens = 6;
  running = {{6, 15, 100, 4, 1}};
  EXPECT_THAT(Make().rows, ElementsAre(PlannedRow{0, 6, 6, false}));
}

TEST_F(PolicyTest, NothingIsPlannedPastTheEnd) {
  running = {{9, 10, 10, 3, 1}, Decode(3)};
  EXPECT_THAT(Make().rows, ElementsAre(PlannedRow{1, 3, 1, true}));
}

TEST_F(PolicyTest, AdmissionKeepsAWatermarkUnlessTheEngineIsEmpty) {
  budget.admission = Admission::kWatermark;
  state.free_pages = 3;
  waiting = {{12}, {1}};
  EXPECT_THAT(Make().rows, ElementsAre(PlannedRow{0, 0, 12, true}));
  running = {Decode(1)};
  waiting = {{5}, {1}};  // the first does not fit, and is not overtaken
  EXPECT_EQ(Make().admitted.size(), 0u);
  waiting = {{4}, {1}};
  EXPECT_EQ(Make().admitted.size(), 1u);
}

class LookAheadTest : public PolicyTest {
 protected:
  LookAheadTest() {
    page_size = 1;  // pages are tokens: figures as worked in peak_use_test
    budget.watermark_pages = 0;
    running = {Running(5, 4), Running(6, 2), Running(3, 1)};
  }
  // A decode that holds `held` ids, all of them prompt but one, and is expected to get so many
  // more.
  static RunningView Running(uint32_t held, uint32_t remaining, uint32_t limit = 1000) {
    return {held - 1, held, limit, held, 1, held - 1, 1 + remaining};
  }
  static WaitingView Waiting(uint32_t length, uint32_t output) {
    return {length, 1000, length, output};
  }
  // Plans with so many pages in all and tells how many came in.
  uint32_t AdmittedOf(uint32_t num_pages) {
    state.free_pages = num_pages;
    for (const RunningView& view : running) state.free_pages -= view.num_pages;
    return Make().admitted.size();
  }
};

TEST_F(LookAheadTest, AdmitsIfThePeakFits) {
  waiting = {Waiting(2, 3)};  // 20 at the end of the third that runs
  EXPECT_EQ(AdmittedOf(19), 0u);
  EXPECT_EQ(AdmittedOf(20), 1u);
  budget.watermark_pages = 1;
  EXPECT_EQ(AdmittedOf(20), 0u);
  EXPECT_EQ(AdmittedOf(21), 1u);
}

TEST_F(LookAheadTest, TheFirstThatDoesNotFitIsNotOvertaken) {
  waiting = {Waiting(2, 100), Waiting(2, 3)};
  EXPECT_EQ(AdmittedOf(30), 0u);
}

TEST_F(LookAheadTest, EachAdmissionCountsForTheNext) {
  waiting = {Waiting(2, 3), Waiting(2, 3)};
  // With both, 5 + 2 + 2 + 6 + 3 + 5 * 1 = 23 at the end of the third that runs.
  EXPECT_EQ(AdmittedOf(22), 1u);
  EXPECT_EQ(AdmittedOf(23), 2u);
}

TEST_F(LookAheadTest, PagesOfThoseAtTheirEndAndInQuarantineWillBeFree) {
  running.push_back(Running(40, 0, 40));
  waiting = {Waiting(2, 3)};
  EXPECT_EQ(AdmittedOf(16 + 40), 1u);
  running.pop_back();
  EXPECT_EQ(AdmittedOf(16), 0u);
  state.quarantined_pages = 4;  // with them, 20
  EXPECT_EQ(AdmittedOf(16), 1u);
  state.quarantined_pages = 3;
  EXPECT_EQ(AdmittedOf(16), 0u);
}

TEST_F(LookAheadTest, ItsIdsNeedPagesNow) {
  running = {Running(5, 4)};
  state.quarantined_pages = 100;
  waiting = {Waiting(6, 1)};
  EXPECT_EQ(AdmittedOf(5 + 5), 0u);
  EXPECT_EQ(AdmittedOf(5 + 6), 1u);
}

TEST_F(LookAheadTest, AnEmptyEngineTakesWhatItCanHold) {
  running = {};
  waiting = {Waiting(10, 500), Waiting(1, 1)};
  EXPECT_EQ(AdmittedOf(10), 1u);
}

TEST_F(LookAheadTest, PagesFoundInTheCacheAreNotItsOwn) {
  waiting = {Waiting(2 + 4, 3)};
  waiting[0].cached = 4;
  EXPECT_EQ(AdmittedOf(19), 0u);
  EXPECT_EQ(AdmittedOf(20), 1u);
  waiting[0].cached_free = 4;  // and nobody else holds them
  EXPECT_EQ(AdmittedOf(23), 0u);
  EXPECT_EQ(AdmittedOf(24), 1u);
  waiting[0].cached_free = 0;
  running[1] = Running(6 + 4, 2);
  running[1].num_cached = 4;  // its end gives back 6 + 2
  EXPECT_EQ(AdmittedOf(23), 0u);
  EXPECT_EQ(AdmittedOf(24), 1u);
}

TEST_F(LookAheadTest, FullReservationCountsLimits) {
  budget.admission = Admission::kReserve;
  running = {Running(5, 1, 30)};
  waiting = {{4, 20, 4, 1}, {4, 20, 4, 1}};
  EXPECT_EQ(AdmittedOf(49), 0u);
  EXPECT_EQ(AdmittedOf(50), 1u);
  EXPECT_EQ(AdmittedOf(70), 2u);
}

// More pages, a smaller watermark or shorter expectations never admit fewer.
TEST_F(LookAheadTest, RandomisedMonotonic) {
  const auto seed = std::random_device()();
  std::printf("seed %u\n", seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 3000; ++round) {
    running.assign(1 + random() % 8, {});
    for (RunningView& view : running) view = Running(2 + random() % 20, 1 + random() % 30);
    waiting.assign(1 + random() % 6, {});
    for (WaitingView& view : waiting) view = Waiting(1 + random() % 5, 1 + random() % 40);
    budget.max_tokens = 1000;
    budget.watermark_pages = random() % 5;
    uint32_t pages = random() % 200;
    for (const RunningView& view : running) pages += view.num_pages;
    const uint32_t admitted = AdmittedOf(pages);
    ASSERT_GE(AdmittedOf(pages + 1 + random() % 50), admitted);
    ++budget.watermark_pages;
    ASSERT_LE(AdmittedOf(pages), admitted);
    --budget.watermark_pages;
    waiting[random() % waiting.size()].rank += 1 + random() % 20;
    ASSERT_LE(AdmittedOf(pages), admitted);
  }
}

TEST_F(PolicyTest, AdmissionStopsAtSlots) {
  state.free_slots = 2;
  waiting = {{1}, {1}, {1}};
  EXPECT_EQ(Make().admitted.size(), 2u);
}

TEST_F(PolicyTest, WhoIsOverHisShareLeavesTheHeadroomToOthers) {
  budget.admission = Admission::kWatermark;
  budget.headroom_pages = 5;
  running = {Decode(1)};
  state.free_pages = 10;
  waiting = {{.length = 8, .over_share = true}, {.length = 8, .over_share = true}, {.length = 8}};
  // 2 pages of 10, beside 2 and 5; then those over their share, in order, wait, and others pass.
  Make();
  EXPECT_THAT(plan.admitted, ElementsAre(0u, 2u));
  EXPECT_THAT(plan.rows, ElementsAre(PlannedRow{0, 1, 1, true}, PlannedRow{1, 0, 8, true},
                                     PlannedRow{2, 0, 8, true}));
  // An engine without anything to do takes all the same.
  running.clear();
  waiting = {{.length = 32, .over_share = true}};
  EXPECT_THAT(Make().admitted, ElementsAre(0u));
}

TEST_F(PolicyTest, AnAdmittedRequestComputesWhatItCannotShare) {
  waiting = {{.length = 15, .cached = 12}, {.length = 9, .cached = 8}, {.length = 40, .cached = 4}};
  EXPECT_THAT(Make().rows, ElementsAre(PlannedRow{0, 12, 3, true}, PlannedRow{1, 8, 1, true},
                                       PlannedRow{2, 4, 16, false}));
}

TEST_F(PolicyTest, ACopiedPageIsItsOwn) {
  running = {{20, 21, 60, 6, 1, 20, 30}};
  waiting = {{.length = 12, .limit = 40, .prompt_len = 12, .rank = 20, .cached = 8}};
  uint32_t num_admitted = 0;
  for (state.free_pages = 0; state.free_pages < 40; ++state.free_pages) {
    waiting[0].cached = 8;
    const uint32_t without = Make().admitted.size();
    num_admitted += without;
    waiting[0].cached = 11;
    EXPECT_EQ(Make().admitted.size(), without) << state.free_pages;
    if (without > 0) {
      EXPECT_EQ(plan.rows.back(), (PlannedRow{1, 11, 1, true}));
    }
  }
  EXPECT_GT(num_admitted, 10u);
  EXPECT_LT(num_admitted, 35u);
}

TEST_F(PolicyTest, SharedPagesAreTakenOnlyFromThoseThatCountAsFree) {
  budget.admission = Admission::kWatermark;
  running = {Decode(1)};
  state.free_pages = 4;
  // Three of four pages are held by another: one is taken, and two are kept for growth.
  waiting = {{.length = 16, .cached = 12, .cached_free = 0}};
  EXPECT_EQ(Make().admitted.size(), 1u);
  waiting[0].cached_free = 1;
  EXPECT_EQ(Make().admitted.size(), 1u);
  waiting[0].cached_free = 2;
  EXPECT_EQ(Make().admitted.size(), 0u);
}

TEST_F(PolicyTest, AVictimFreesOnlyWhatItHoldsAlone) {
  state.free_pages = 0;
  state.completed_step = 1;
  running = {Decode(4), Decode(5), Decode(9), Decode(9)};
  running[3].num_shared = 3;  // all it has
  EXPECT_THAT(Make().rows, ElementsAre(PlannedRow{0, 4, 1, true}, PlannedRow{1, 5, 1, true}));
  EXPECT_THAT(plan.preempted, ElementsAre(3u, 2u));
}

TEST_F(PolicyTest, ADecodeWithoutAPagePreemptsTheYoungest) {
  state.free_pages = 1;
  state.completed_step = 1;  // so the victim's pages are free at once
  running = {Decode(4), Decode(8), Decode(5), Decode(6)};
  waiting = {{1}};
  EXPECT_THAT(Make().rows, ElementsAre(PlannedRow{0, 4, 1, true}, PlannedRow{1, 8, 1, true},
                                       PlannedRow{2, 5, 1, true}));
  EXPECT_THAT(plan.preempted, ElementsAre(3u));
  EXPECT_EQ(plan.admitted.size(), 0u);
}

TEST_F(PolicyTest, PagesOfAPlanInFlightAreWaitedFor) {
  state.free_pages = 0;
  running = {Decode(4), Decode(5)};  // step 1 is in flight
  EXPECT_THAT(Make().rows, IsEmpty());
  EXPECT_THAT(plan.preempted, ElementsAre(1u));
}

TEST_F(PolicyTest, NobodyIsPreemptedForPagesThatComeByThemselves) {
  state.free_pages = 0;
  state.quarantined_pages = 1;
  running = {Decode(4), Decode(5)};
  EXPECT_THAT(Make().rows, ElementsAre(PlannedRow{1, 5, 1, true}));
  EXPECT_THAT(plan.preempted, IsEmpty());
  state.quarantined_pages = 0;
  running[1].limit = running[1].length;  // its end is on its way
  EXPECT_THAT(Make().rows, IsEmpty());
  EXPECT_THAT(plan.preempted, IsEmpty());
}

TEST_F(PolicyTest, TheYoungestSitsOutRatherThanPreemptItself) {
  state.free_pages = 0;
  running = {Decode(5), Decode(4)};
  EXPECT_THAT(Make().rows, ElementsAre(PlannedRow{0, 5, 1, true}));
  EXPECT_THAT(plan.preempted, IsEmpty());
}

}  // namespace
}  // namespace penstock::scheduler
