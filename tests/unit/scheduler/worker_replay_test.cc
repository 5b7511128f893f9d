// A rank (in the test's own process) driven with a recording: the same ids, and where they are not.
#include "scheduler/record/worker_replay.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <random>
#include <thread>

#include "common/log.h"
#include "scheduler/record/recording.h"
#include "tests/unit/scheduler/recorded_trace.h"
#include "tests/unit/scheduler/segment_rank.h"

namespace penstock::scheduler {
namespace {

using ::testing::HasSubstr;

class WorkerReplayTest : public ::testing::Test {
 protected:
  void SetUp() override {
    unlink(path_.c_str());
    options_.seed = std::random_device()();
    options_.num_pages = 100;
    options_.arena_bytes = 16 << 10;
    std::printf("seed %u\n", options_.seed);
  }
  void TearDown() override {
    replay_.reset();
    if (thread_.joinable()) {
      rank_->Stop();
      thread_.join();
    }
    rank_.reset();
    EXPECT_TRUE(shm::Segment::Remove(engine_id_).ok());
    unlink(path_.c_str());
  }

  void Open() {
    recording_ = Recording::Open(path_).value();
    const auto geometry = WorkerReplay::GeometryFor(recording_->header(), 1);
    segment_ = shm::Segment::CreateOrAdopt(engine_id_, geometry).value();
    rank_ = std::make_unique<SegmentRank>(segment_.get(), engine_id_, 0);
    WorkerReplay::Options options{
        .start_timeout_ns = 10'000'000'000, .step_timeout_ns = 10'000'000'000, .on_wait = {}};
    replay_ = std::make_unique<WorkerReplay>(segment_, options);
  }
  void StartRank() {
    rank_->SetReady();
    thread_ = std::thread([this] { rank_->Run(); });
  }
  // With each event as `change` leaves it.
  absl::StatusOr<std::optional<std::string>> Replay(
      const std::function<void(record::Event*)>& change = {}) {
    std::optional<std::string> difference;
    while (!difference) {
      ASSIGN_OR_RETURN(const record::Event* const event, recording_->Next());
      if (event == nullptr) break;
      record::Event changed = *event;
      if (change) change(&changed);
      ASSIGN_OR_RETURN(difference, replay_->Take(changed));
    }
    replay_->Finish();
    return difference;
  }

  const std::string path_ = fmt::format("{}/worker-replay-{}", ::testing::TempDir(), getpid());
  const std::string engine_id_ = fmt::format("worker-replay-{}", getpid());
  TraceOptions options_;
  std::unique_ptr<Recording> recording_;
  std::shared_ptr<shm::Segment> segment_;
  std::unique_ptr<SegmentRank> rank_;
  std::unique_ptr<WorkerReplay> replay_;
  std::thread thread_;
};

TEST_F(WorkerReplayTest, ARankGivesTheRecordedIds) {
  uint64_t num_published, num_deaths;
  {
    RecordedTrace trace(path_, options_);
    trace.Run(5000);
    trace.Finish();
    num_published = trace.num_published;
    num_deaths = trace.num_deaths;
  }
  Open();
  StartRank();
  EXPECT_EQ(Replay().value(), std::nullopt);
  EXPECT_EQ(replay_->num_steps(), num_published);
  EXPECT_EQ(replay_->num_epochs(), num_deaths + 1);
  EXPECT_GT(replay_->num_ids(), num_published);
  EXPECT_GT(num_deaths, 0u);
  EXPECT_TRUE(replay_->losses().empty());
}

TEST_F(WorkerReplayTest, AnIdThatIsAnotherIsNamed) {
  RecordedTrace(path_, options_).Run(1000);
  Open();
  StartRank();
  uint64_t step = 0, skip = options_.seed % 200;
  uint32_t id = 0, position = 0;
  const auto difference = Replay([&](record::Event* event) {
    // (Of those that go on with a step's results, the step is not known here.)
    if (!event->has_results() || event->results().rows_size() == 0 ||
        event->results().step() == 0 || step != 0) {
      return;
    }
    if (skip-- > 0) return;
    record::Results& results = *event->mutable_results();
    step = results.step();
    id = results.rows(2);
    position = results.rows(3);
    results.set_rows(2, id + 1);
  });
  ASSERT_TRUE(difference.ok() && difference->has_value());
  EXPECT_THAT(**difference, HasSubstr(fmt::format("step {} of epoch", step)));
  EXPECT_THAT(**difference, HasSubstr("(trace-"));
  EXPECT_THAT(**difference,
              HasSubstr(fmt::format("position {}: the id differs. Recorded: {}. Now: {}.", position,
                                    id + 1, id)));
}

TEST_F(WorkerReplayTest, ARankThatDiesWhereItDidNotIsNamed) {
  RecordedTrace(path_, options_).Run(1000);
  Open();
  StartRank();
  int num_complete = 0;
  const auto difference = Replay([&](record::Event* event) {
    if (!event->has_complete_step() || ++num_complete != 50) return;
    rank_->Stop();
    thread_.join();
    rank_->SetState(shm::RankState::kFailed);
  });
  ASSERT_TRUE(difference.ok() && difference->has_value());
  EXPECT_THAT(**difference, HasSubstr("the ranks were lost (rank 0 is not ready any more"));
  EXPECT_THAT(**difference, HasSubstr("though they completed it when it was recorded"));
}

TEST_F(WorkerReplayTest, AnotherModelIsRefused) {
  RecordedTrace(path_, options_).Run(10);
  struct Case {
    std::function<void(record::Reset*)> change;
    const char* says;
  };
  for (const Case& c :
       {Case{[](record::Reset* r) { r->set_vocab_size(5); }, "give the --model that was recorded"},
        Case{[](record::Reset* r) { r->set_page_size(32); }, "give --block-size"},
        Case{[](record::Reset* r) { r->set_num_pages(513); }, "KV pages 513, here 512: give"},
        Case{[](record::Reset* r) { r->set_max_model_len(4096); }, "give --max-model-len"},
        Case{[](record::Reset* r) { r->set_max_num_batched_tokens(512); },
             "give --max-num-batched-tokens"}}) {
    Open();
    StartRank();
    const auto outcome = Replay([&](record::Event* event) {
      if (event->has_reset()) c.change(event->mutable_reset());
    });
    EXPECT_THAT(Message(outcome.status()), HasSubstr(c.says));
    rank_->Stop();
    thread_.join();
    replay_.reset();
    rank_.reset();
    // The death watch may hold the old one yet.
    ASSERT_TRUE(shm::Segment::Remove(engine_id_).ok());
  }
}

TEST_F(WorkerReplayTest, RanksThatDoNotGetReady) {
  RecordedTrace(path_, options_).Run(10);
  Open();
  std::string reason;
  replay_ = std::make_unique<WorkerReplay>(
      segment_, WorkerReplay::Options{.start_timeout_ns = 10'000'000'000,
                                      .step_timeout_ns = 0,
                                      .on_wait = [&](const std::string& why) -> absl::Status {
                                        reason = why;
                                        return Aborted("enough");
                                      }});
  EXPECT_EQ(Message(Replay().status()), "enough");
  EXPECT_EQ(reason, "rank 0 loads weights, 0%");
}

}  // namespace
}  // namespace penstock::scheduler
