// kill -9 of workers and schedulers, alone and together, over and over: streams go on with the ids
// they would have had, and every account is square afterwards.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tests/unit/scheduler/engine_fixture.h"

namespace penstock::scheduler {
namespace {

using ::testing::HasSubstr;

class DeathTest : public EngineTest {
 protected:
  // What 8 streams say when nobody dies. Their seeds are their ids.
  static constexpr int kLength = 400;
  void SubmitStreams(int num_streams = 8) {
    for (int id = 1; id <= num_streams; ++id) {
      client_->Submit(RouterClient::MakeSubmit(id, 20, kLength));
    }
  }
  std::vector<std::string> SlowWorker() const {
    return {"--num-kv-pages=4096", "--max-model-len=4096", "--null-step-us=1000"};
  }
  bool PumpUntilAllHave(size_t num_ids) {
    return client_->PumpUntil([&] {
      return std::all_of(client_->streams.begin(), client_->streams.end(),
                         [&](const auto& entry) { return entry.second.outputs.size() >= num_ids; });
    });
  }
  // Runs the streams undisturbed and keeps what they say.
  void LearnExpected() {
    SubmitStreams();
    ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
    expected_ = std::move(client_->streams);
    client_->streams.clear();
  }
  void ExpectSameIds() {
    for (const auto& [id, stream] : client_->streams) {
      ExpectWhole(stream);
      EXPECT_EQ(stream.outputs, expected_.at(id).outputs);
    }
  }
  std::map<uint64_t, ClientStream> expected_;
};

TEST_P(DeathTest, OfAWorkerLetsStreamsGoOn) {
  const int num_ranks = GetParam();
  Start({}, SlowWorker(), num_ranks);
  LearnExpected();
  SubmitStreams();
  ASSERT_TRUE(PumpUntilAllHave(50));
  workers_[num_ranks - 1].Kill();
  ASSERT_TRUE(client_->PumpUntil([this] { return !client_->status.ready(); }));
  EXPECT_THAT(client_->status.not_ready_reason(), HasSubstr("rank"));
  for (int rank = 0; rank < num_ranks; ++rank) {
    workers_[rank].Kill();  // as the launcher does: the whole group
  }
  for (int rank = 0; rank < num_ranks; ++rank) StartWorker(rank);
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  ExpectSameIds();
  for (const auto& [id, stream] : client_->streams) EXPECT_EQ(stream.num_resubmitted, 0);
  ExpectAllFree();
}

TEST_P(DeathTest, OfTheSchedulerLeavesWorkersAndStreams) {
  const int num_ranks = GetParam();
  Start({}, SlowWorker(), num_ranks);
  LearnExpected();
  SubmitStreams();
  ASSERT_TRUE(PumpUntilAllHave(50));
  const uint64_t epoch = client_->epoch;
  scheduler_.Kill();
  StartTheScheduler();
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  EXPECT_NE(client_->epoch, epoch);
  ExpectSameIds();
  for (const auto& [id, stream] : client_->streams) EXPECT_GE(stream.num_resubmitted, 1);
  ExpectAllFree();
}

INSTANTIATE_TEST_SUITE_P(Ranks, DeathTest, ::testing::Values(1, 4),
                         [](const auto& info) { return fmt::format("{}ranks", info.param); });

TEST_F(DeathTest, TwiceInFlightFailsAndWhoWaitedGoesOn) {
  Start({"--max-num-seqs=2"}, SlowWorker());
  LearnExpected();
  SubmitStreams();
  for (int death = 0; death < 2; ++death) {
    ASSERT_TRUE(client_->PumpUntil([&] {
      return client_->streams[1].outputs.size() >= 50u * (death + 1) &&
             client_->streams[2].outputs.size() >= 50u * (death + 1);
    }));
    workers_[0].Kill();
    StartWorker(0);
  }
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  for (uint64_t id : {1, 2}) {
    const ClientStream& failed = client_->streams[id];
    EXPECT_EQ(failed.end, wire::END_ERROR);
    EXPECT_EQ(failed.error_code, static_cast<uint32_t>(absl::StatusCode::kAborted));
    EXPECT_THAT(failed.error, HasSubstr("died twice"));
    client_->streams.erase(id);
  }
  ExpectSameIds();
  ExpectAllFree();
}

TEST_F(DeathTest, WhileRanksAreAwayRequestsWaitAndBadOnesFailAfterwards) {
  Start({}, SlowWorker());
  workers_[0].Kill();
  ASSERT_TRUE(client_->PumpUntil([this] { return !client_->status.ready(); }));
  wire::Submit bad = RouterClient::MakeSubmit(9, 10, 10);
  bad.add_ids(99999);
  client_->Submit(bad);
  client_->Submit(RouterClient::MakeSubmit(1, 10, 10));
  ASSERT_TRUE(client_->WaitStatus([](const wire::Status& s) { return s.num_waiting() == 2; }));
  StartWorker(0);
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  ExpectWhole(client_->streams[1]);
  EXPECT_EQ(client_->streams[9].end, wire::END_ERROR);
  ExpectAllFree();
}

TEST_F(DeathTest, OfEverybodyAgainAndAgainLosesNothing) {
  Start({}, SlowWorker());
  LearnExpected();
  SubmitStreams();
  for (int death = 1; death <= 4; ++death) {
    ASSERT_TRUE(PumpUntilAllHave(50 * death));
    scheduler_.Kill();
    workers_[0].Kill();
    StartWorker(0);
    StartTheScheduler();
  }
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  ExpectSameIds();
  ExpectAllFree();
}

}  // namespace
}  // namespace penstock::scheduler
