#include "scheduler/worker_link.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <optional>

#include "common/log.h"
#include "tests/unit/scheduler/segment_rank.h"

namespace penstock::scheduler {
namespace {

using ::testing::HasSubstr;
using Change = WorkerLink::Change;
using State = WorkerLink::State;

class WorkerLinkTest : public ::testing::Test {
 protected:
  void SetUp() override { MakeLink(); }
  void TearDown() override {
    ranks_[0].reset();
    ranks_[1].reset();
    EXPECT_TRUE(shm::Segment::Remove(id_).ok());
  }
  // As a scheduler that starts does.
  void MakeLink() {
    link_.reset();
    segment_ = shm::Segment::CreateOrAdopt(id_, WorkerLink::SizeRings(geometry_, 256)).value();
    link_.emplace(segment_);
  }
  void StartRank(int index, bool ready = true) {
    ranks_[index].emplace(segment_.get(), id_, index);
    if (ready) ranks_[index]->SetReady();
  }
  void Serve() {
    for (int index : {0, 1}) {
      if (!ranks_[index]) StartRank(index);
    }
    ASSERT_EQ(link_->Poll(), Change::kNone);
    for (int index : {0, 1}) ASSERT_TRUE(ranks_[index]->Step());
    ASSERT_EQ(link_->Poll(), Change::kServing);
    ASSERT_EQ(link_->state(), State::kServing);
  }
  // A plan that binds slot 0 to a request of three ids and runs it.
  PlanRecord OneRequest() {
    shm::RequestSlot& slot = segment_->slot(0);
    slot.generation += 1;
    slot.prompt_len = slot.known_len = 3;
    slot.ids_offset = 0;
    slot.sampling.seed = 5;
    PlanRecord record;
    record.binds.push_back({0, slot.generation});
    record.appends.push_back({0, 0});
    record.rows.push_back({0, 0, 3, shm::kRowSample});
    return record;
  }
  void StepBoth() {
    for (int index : {0, 1}) ASSERT_TRUE(ranks_[index]->Step());
  }

  const std::string id_ = fmt::format("worker-link-test-{}", getpid());
  const shm::Geometry geometry_{.num_ranks = 2, .num_slots = 4, .arena_bytes = 4096};
  std::shared_ptr<shm::Segment> segment_;
  std::optional<WorkerLink> link_;
  std::optional<SegmentRank> ranks_[2];
};

TEST_F(WorkerLinkTest, WaitsForAllRanksAndSaysForWhat) {
  EXPECT_EQ(link_->Poll(), Change::kNone);
  EXPECT_THAT(link_->NotReadyReason(), HasSubstr("rank 0 is not running"));
  StartRank(0);
  StartRank(1, false);
  ranks_[1]->area().load_progress.store(0.4f);
  EXPECT_EQ(link_->Poll(), Change::kNone);
  EXPECT_EQ(link_->NotReadyReason(), "rank 1 loads weights, 40%");
  ranks_[1]->area().load_progress.store(1.0f);
  EXPECT_EQ(link_->NotReadyReason(), "rank 1 warms up");
  std::strcpy(ranks_[1]->area().error, "no such file");
  ranks_[1]->SetState(shm::RankState::kFailed);
  EXPECT_EQ(link_->NotReadyReason(), "rank 1 failed: no such file");
  ranks_[1]->SetReady();
  EXPECT_EQ(link_->Poll(), Change::kNone);
  EXPECT_EQ(link_->state(), State::kResetting);
  EXPECT_THAT(link_->NotReadyReason(), HasSubstr("reset"));
  EXPECT_TRUE(ranks_[0]->Step());
  EXPECT_EQ(link_->Poll(), Change::kNone);  // one has not yet acknowledged
  EXPECT_TRUE(ranks_[1]->Step());
  EXPECT_EQ(link_->Poll(), Change::kServing);
  EXPECT_EQ(link_->NotReadyReason(), "");
}

TEST_F(WorkerLinkTest, RanksOfDifferentModelsAreRefusedAndTheFewestPagesCount) {
  StartRank(0);
  StartRank(1, false);
  ranks_[1]->area().vocab_size.store(77);
  ranks_[1]->SetReady();
  EXPECT_EQ(link_->Poll(), Change::kNone);
  EXPECT_THAT(link_->NotReadyReason(), HasSubstr("different models"));
  ranks_[1]->area().vocab_size.store(SegmentRank::kVocabulary);
  ranks_[1]->area().num_pages.store(300);
  Serve();
  EXPECT_EQ(link_->model().num_pages, 300u);
}

TEST_F(WorkerLinkTest, AStepIsCompleteWhenAllRanksHaveDoneIt) {
  Serve();
  link_->Publish(1, OneRequest());
  EXPECT_EQ(link_->NextResult(1), nullptr);
  ASSERT_TRUE(ranks_[0]->Step());
  EXPECT_EQ(link_->NextResult(1), nullptr);
  ASSERT_TRUE(ranks_[1]->Step());
  const shm::ResultHeader* result = link_->NextResult(1);
  ASSERT_NE(result, nullptr);
  EXPECT_EQ(result->num_rows, 1u);
  const auto& row = *reinterpret_cast<const shm::ResultRow*>(result + 1);
  EXPECT_EQ(row.token_id, SegmentRank::IdAt(5, 3));
  EXPECT_EQ(row.position, 3);
  link_->Consume();
  EXPECT_EQ(link_->NextResult(2), nullptr);
  EXPECT_EQ(link_->Poll(), Change::kNone);
}

TEST_F(WorkerLinkTest, RanksThatDisagreeEndTheEpoch) {
  Serve();
  const uint64_t epoch = link_->epoch();
  ranks_[1]->hash_noise = 1;
  link_->Publish(1, OneRequest());
  StepBoth();
  EXPECT_EQ(link_->NextResult(1), nullptr);
  EXPECT_EQ(link_->Poll(), Change::kLost);
  EXPECT_EQ(link_->epoch(), epoch + 1);
  EXPECT_EQ(segment_->header().epoch.load(), epoch + 1);
  ranks_[1]->hash_noise = 0;
  Serve();  // the same processes, after another Reset
  link_->Publish(1, OneRequest());
  StepBoth();
  EXPECT_NE(link_->NextResult(1), nullptr);
}

TEST_F(WorkerLinkTest, AWrongStepEndsTheEpoch) {
  Serve();
  ranks_[0]->step_noise = 1;
  link_->Publish(1, OneRequest());
  StepBoth();
  EXPECT_EQ(link_->NextResult(1), nullptr);
  EXPECT_EQ(link_->Poll(), Change::kLost);
}

TEST_F(WorkerLinkTest, ResultsOfAnEarlierEpochAreIgnored) {
  Serve();
  link_->Publish(1, OneRequest());
  link_->DeclareLost("the test says so");
  EXPECT_EQ(link_->Poll(), Change::kLost);
  EXPECT_EQ(link_->Poll(), Change::kNone);
  for (int index : {0, 1}) {
    ASSERT_TRUE(ranks_[index]->Step());  // the old step, whose result is void
    ASSERT_TRUE(ranks_[index]->Step());  // the Reset
  }
  EXPECT_EQ(link_->Poll(), Change::kServing);
  EXPECT_EQ(link_->NextResult(1), nullptr);
  link_->Publish(1, OneRequest());
  StepBoth();
  EXPECT_NE(link_->NextResult(1), nullptr);
}

TEST_F(WorkerLinkTest, ADeathWakesTheSchedulerAndANewRankServes) {
  Serve();
  const uint32_t seen = segment_->header().scheduler_event.Current();
  ranks_[1].reset();
  EXPECT_TRUE(segment_->header().scheduler_event.Wait(seen, shm::MonotonicNs() + 60'000'000'000));
  EXPECT_EQ(link_->Poll(), Change::kLost);
  EXPECT_EQ(link_->Poll(), Change::kNone);
  EXPECT_THAT(link_->NotReadyReason(), HasSubstr("rank 1 is not running"));
  Serve();
}

TEST_F(WorkerLinkTest, ARankThatWasStartedAnewUnseenIsNoticed) {
  Serve();
  ranks_[1].reset();
  StartRank(1);
  EXPECT_EQ(link_->Poll(), Change::kLost);
  Serve();
}

TEST_F(WorkerLinkTest, ARankThatDiesDuringTheResetIsNoticed) {
  StartRank(0);
  StartRank(1);
  EXPECT_EQ(link_->Poll(), Change::kNone);
  EXPECT_EQ(link_->state(), State::kResetting);
  ranks_[1].reset();
  StartRank(1);
  EXPECT_EQ(link_->Poll(), Change::kLost);
  ASSERT_TRUE(ranks_[0]->Step());  // the Reset of the epoch that is over
  Serve();
}

TEST_F(WorkerLinkTest, ManySteps) {
  Serve();
  PlanRecord record = OneRequest();
  for (uint64_t step = 1; step < 100'000; ++step) {
    link_->Publish(step, record);
    StepBoth();
    ASSERT_NE(link_->NextResult(step), nullptr);
    link_->Consume();
    record.Clear();
    record.rows.push_back({0, static_cast<uint32_t>(step + 2), 1, shm::kRowSample});
  }
}

}  // namespace
}  // namespace penstock::scheduler
