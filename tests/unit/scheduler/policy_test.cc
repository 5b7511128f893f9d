#include "scheduler/policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

// A decode with its pages (of 4 tokens) full or not, as `computed` has it.
RunningView Decode(uint32_t computed, uint64_t last_step = 1) {
  return {computed, computed + 1, 1000, PagesFor(computed, 4), last_step};
}

class PolicyTest : public ::testing::Test {
 protected:
  const StepPlan& Make() {
    state.running = running;
    state.waiting = waiting;
    state.page_size = 4;
    Plan(state, budget, &plan);
    return plan;
  }
  std::vector<RunningView> running;
  std::vector<WaitingView> waiting;
  PolicyState state{.free_pages = 100, .free_slots = 10};
  Budget budget{.max_tokens = 20, .watermark_pages = 2};
  StepPlan plan;
};

TEST_F(PolicyTest, NothingToDo) {
  EXPECT_THAT(Make().rows, IsEmpty());
  EXPECT_EQ(plan.num_admitted, 0u);
}

TEST_F(PolicyTest, DecodesFirstThenChunksThenAdmission) {
  running = {{0, 15, 100, 4, 0}, Decode(7), Decode(9)};
  waiting = {{2}, {9}, {3}};
  EXPECT_THAT(Make().rows, ElementsAre(PlannedRow{1, 7, 1, true}, PlannedRow{2, 9, 1, true},
                                       PlannedRow{0, 0, 15, true}, PlannedRow{3, 0, 2, true},
                                       PlannedRow{4, 0, 1, false}));
  EXPECT_EQ(plan.num_admitted, 2u);
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
  state.free_pages = 3;
  waiting = {{12}, {1}};
  EXPECT_THAT(Make().rows, ElementsAre(PlannedRow{0, 0, 12, true}));
  running = {Decode(1)};
  waiting = {{5}, {1}};  // the first does not fit, and is not overtaken
  EXPECT_EQ(Make().num_admitted, 0u);
  waiting = {{4}, {1}};
  EXPECT_EQ(Make().num_admitted, 1u);
}

TEST_F(PolicyTest, AdmissionStopsAtSlots) {
  state.free_slots = 2;
  waiting = {{1}, {1}, {1}};
  EXPECT_EQ(Make().num_admitted, 2u);
}

TEST_F(PolicyTest, AnAdmittedRequestComputesWhatItCannotShare) {
  waiting = {{.length = 15, .cached = 12}, {.length = 9, .cached = 8}, {.length = 40, .cached = 4}};
  EXPECT_THAT(Make().rows, ElementsAre(PlannedRow{0, 12, 3, true}, PlannedRow{1, 8, 1, true},
                                       PlannedRow{2, 4, 16, false}));
}

TEST_F(PolicyTest, SharedPagesAreTakenOnlyFromThoseThatCountAsFree) {
  running = {Decode(1)};
  state.free_pages = 4;
  // Three of four pages are held by another: one is taken, and two are kept for growth.
  waiting = {{.length = 16, .cached = 12, .cached_free = 0}};
  EXPECT_EQ(Make().num_admitted, 1u);
  waiting[0].cached_free = 1;
  EXPECT_EQ(Make().num_admitted, 1u);
  waiting[0].cached_free = 2;
  EXPECT_EQ(Make().num_admitted, 0u);
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
  EXPECT_EQ(plan.num_admitted, 0u);
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
