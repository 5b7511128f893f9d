#include "tools/penstock/bench/engine_transport.h"

#include <gtest/gtest.h>

#include "tests/unit/router/engine/fake_engine.h"

namespace penstock::bench {
namespace {

using std::chrono::milliseconds;

class EngineTransportTest : public testing::Test {
 protected:
  void SetUp() override {
    transport_ = *EngineTransport::Connect(engine_.address());
    int calls = 0;
    // The engine lives in this thread: it speaks while the transport waits.
    ASSERT_TRUE(transport_
                    ->WaitUntilReady([&](const std::string&) {
                      if (calls++ == 0) {
                        engine_.SendStatus(engine_.ReceiveLease(), false, {}, "loading");
                      } else {
                        engine_.BecomeReady();
                      }
                      return absl::OkStatus();
                    })
                    .ok());
  }

  // Polls until `count` events have come or it fails.
  absl::Status PollFor(size_t count) {
    const Clock::time_point give_up = Clock::now() + std::chrono::seconds(20);
    while (events_.size() < count && Clock::now() < give_up) {
      RETURN_IF_ERROR(transport_->Poll(Clock::now() + milliseconds(10), &events_));
    }
    return absl::OkStatus();
  }

  router::FakeEngine engine_{1};
  std::unique_ptr<EngineTransport> transport_;
  std::vector<Event> events_;
  const Prompt prompt_ = {.ids = {1, 2, 3}, .output_len = 4};
};

TEST_F(EngineTransportTest, ABatchGoesOutInOneMessage) {
  for (size_t i = 0; i < 5; ++i) ASSERT_TRUE(transport_->Start(i, prompt_).ok());
  ASSERT_TRUE(transport_->Poll(Clock::now(), &events_).ok());
  const wire::ToScheduler message =
      engine_.Receive([](const auto& m) { return m.submit_size() > 0; });
  ASSERT_EQ(message.submit_size(), 5);
  EXPECT_EQ(message.submit(0).prompt_len(), 3);
  EXPECT_EQ(message.submit(0).sampling().max_tokens(), 4);
  EXPECT_EQ(message.submit(0).sampling().stop_ids_size(), 0);
}

TEST_F(EngineTransportTest, IdsThatComeTwiceCountOnce) {
  ASSERT_TRUE(transport_->Start(7, prompt_).ok());
  ASSERT_TRUE(transport_->Poll(Clock::now(), &events_).ok());
  const uint64_t id = engine_.ReceiveSubmit().id();
  engine_.SendIds(id, 0, {5, 6});
  engine_.SendIds(id, 3, {8});     // a gap: not taken
  engine_.SendIds(id, 0, {5, 6});  // again: nothing new
  engine_.SendIds(id, 1, {6, 7, 8}, wire::END_LENGTH);
  ASSERT_TRUE(PollFor(2).ok());
  ASSERT_EQ(events_.size(), 2u);
  EXPECT_EQ(events_[0].request, 7u);
  EXPECT_EQ(events_[0].num_tokens, 2);
  EXPECT_FALSE(events_[0].end);
  EXPECT_EQ(events_[1].num_tokens, 2);
  EXPECT_TRUE(events_[1].end);
  EXPECT_TRUE(events_[1].error.ok());
}

TEST_F(EngineTransportTest, AnErrorIsTheRequests) {
  ASSERT_TRUE(transport_->Start(0, prompt_).ok());
  ASSERT_TRUE(transport_->Poll(Clock::now(), &events_).ok());
  engine_.SendError(engine_.ReceiveSubmit().id(), absl::StatusCode::kResourceExhausted, "full");
  ASSERT_TRUE(PollFor(1).ok());
  ASSERT_EQ(events_.size(), 1u);
  EXPECT_TRUE(events_[0].end);
  EXPECT_TRUE(absl::IsResourceExhausted(events_[0].error));
}

TEST_F(EngineTransportTest, AnEngineThatIsNotReadyAnyMoreEndsTheBenchmark) {
  engine_.SendStatus({}, false, {}, "a rank died");
  EXPECT_TRUE(absl::IsAborted(PollFor(1)));
}

TEST_F(EngineTransportTest, ALostRequestEndsTheBenchmark) {
  ASSERT_TRUE(transport_->Start(0, prompt_).ok());
  ASSERT_TRUE(transport_->Poll(Clock::now(), &events_).ok());
  engine_.SendStatus({}, true, {engine_.ReceiveSubmit().id()});
  EXPECT_TRUE(absl::IsAborted(PollFor(1)));
}

}  // namespace
}  // namespace penstock::bench
