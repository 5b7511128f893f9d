#include "router/engine/engine_link.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

#include "router/engine/engine_pool.h"
#include "tests/unit/router/engine/fake_engine.h"

// libzmq isn't built with TSan, which therefore can't see that it hands messages over in order:
// what it does itself is not looked at, what happens in this repository's code is.
extern "C" const char* __tsan_default_suppressions();
extern "C" const char* __tsan_default_suppressions() { return "called_from_lib:libzmq.so\n"; }

namespace penstock::router {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Keeps what a request is told.
class Sink final : public TokenSink {
 public:
  SinkAction OnTokens(const TokenDelta& delta) override {
    std::lock_guard lock(mutex_);
    EXPECT_FALSE(ended_) << "ids after the end";
    ids_.insert(ids_.end(), delta.ids.begin(), delta.ids.end());
    if (delta.end != wire::END_NONE) ended_ = true;
    return stop_at_ != 0 && ids_.size() >= stop_at_ ? SinkAction::kStop : SinkAction::kContinue;
  }
  void OnFailure(const absl::Status& status) override {
    std::lock_guard lock(mutex_);
    EXPECT_FALSE(ended_) << "a failure after the end";
    failure_ = status;
    ended_ = true;
  }
  void Flush() override {
    std::lock_guard lock(mutex_);
    flushed_ = ids_.size();
    flushed_end_ = ended_;
    changed_.notify_all();
  }

  void StopAt(size_t count) { stop_at_ = count; }
  // The ids once there are `count`; fails the test after 20 s.
  std::vector<int32_t> WaitIds(size_t count) {
    return Wait([&] { return flushed_ >= count; });
  }
  std::vector<int32_t> WaitEnd() {
    return Wait([&] { return flushed_end_; });
  }
  absl::Status failure() {
    std::lock_guard lock(mutex_);
    return failure_;
  }

 private:
  template <typename Condition>
  std::vector<int32_t> Wait(Condition condition) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, std::chrono::seconds(20), condition));
    return ids_;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<int32_t> ids_;
  size_t flushed_ = 0;
  size_t stop_at_ = 0;
  bool ended_ = false;
  bool flushed_end_ = false;
  absl::Status failure_;
};

wire::Submit MakeSubmit() {
  wire::Submit submit;
  for (const int32_t id : {11, 12, 13}) submit.add_ids(id);
  submit.set_prompt_len(3);
  submit.mutable_sampling()->set_max_tokens(100);
  return submit;
}

LinkOptions Options() {
  return {.router_id = "router-test", .lease_ms = 50, .silent_ms = 20'000, .timeout_ms = 60'000};
}

class EngineLinkTest : public testing::Test {
 protected:
  void Connect(const std::vector<std::string>& addresses, const LinkOptions& options = Options()) {
    auto pool = EnginePool::Connect(addresses, options);
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
  }
  // Connects to engine_ and waits until it counts as ready.
  void ConnectReady() {
    Connect({engine_->address()});
    engine_->BecomeReady();
    WaitReady();
  }
  void WaitReady() {
    for (int i = 0; i < 2000 && !pool_->Ready().ok(); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    ASSERT_TRUE(pool_->Ready().ok()) << pool_->Ready();
  }
  uint64_t Submit(const std::shared_ptr<Sink>& sink, wire::Submit submit = MakeSubmit()) {
    const auto id = pool_->Submit(std::move(submit), /*draw_seed=*/true, sink);
    EXPECT_TRUE(id.ok()) << id.status();
    return id.value_or(0);
  }

  std::unique_ptr<FakeEngine> engine_ = std::make_unique<FakeEngine>(1);
  std::shared_ptr<Sink> sink_ = std::make_shared<Sink>();
  std::unique_ptr<EnginePool> pool_;
};

TEST(FateOf, IdsThatComeTwiceLateOrWithAGap) {
  EXPECT_EQ(FateOf(5, 5, 1, wire::END_NONE), DeltaFate::kTake);
  EXPECT_EQ(FateOf(5, 3, 4, wire::END_NONE), DeltaFate::kTake);   // two of four are new
  EXPECT_EQ(FateOf(5, 3, 2, wire::END_NONE), DeltaFate::kStale);  // none is
  EXPECT_EQ(FateOf(5, 0, 0, wire::END_NONE), DeltaFate::kStale);
  EXPECT_EQ(FateOf(5, 6, 1, wire::END_NONE), DeltaFate::kGap);
  EXPECT_EQ(FateOf(5, 6, 1, wire::END_LENGTH), DeltaFate::kGap);
  EXPECT_EQ(FateOf(5, 5, 0, wire::END_LENGTH), DeltaFate::kTake);
  EXPECT_EQ(FateOf(5, 3, 2, wire::END_STOP), DeltaFate::kTake);  // the end had been lost
  EXPECT_EQ(FateOf(5, 2, 2, wire::END_STOP), DeltaFate::kStale);
  EXPECT_EQ(FateOf(5, 0, 0, wire::END_ERROR), DeltaFate::kTake);
  EXPECT_EQ(FateOf(0, UINT32_MAX, UINT32_MAX, wire::END_NONE), DeltaFate::kGap);
}

TEST_F(EngineLinkTest, NotUsableUntilTheEngineSaysSo) {
  Connect({engine_->address()});
  EXPECT_THAT(Message(pool_->Ready()), HasSubstr("not answered yet"));
  EXPECT_TRUE(absl::IsUnavailable(pool_->Submit(MakeSubmit(), true, sink_).status()));
  engine_->SendStatus(engine_->ReceiveLease(), false, {}, "loading weights, 40%");
  for (int i = 0; i < 2000 && Message(pool_->Ready()).find("40%") == std::string::npos; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_THAT(Message(pool_->Ready()), HasSubstr("loading weights, 40%"));
  engine_->BecomeReady();
  WaitReady();
  EXPECT_EQ(pool_->max_model_len(), 4096u);
}

TEST_F(EngineLinkTest, StreamsIdsToTheEnd) {
  ConnectReady();
  const uint64_t id = Submit(sink_);
  const wire::Submit submit = engine_->ReceiveSubmit();
  EXPECT_EQ(submit.id(), id);
  EXPECT_THAT(submit.ids(), ElementsAre(11, 12, 13));
  EXPECT_NE(submit.sampling().seed(), 0u);
  engine_->SendIds(id, 0, {1});
  engine_->SendIds(id, 1, {2, 3});
  EXPECT_THAT(sink_->WaitIds(3), ElementsAre(1, 2, 3));
  engine_->SendIds(id, 3, {4}, wire::END_LENGTH);
  EXPECT_THAT(sink_->WaitEnd(), ElementsAre(1, 2, 3, 4));
  EXPECT_EQ(pool_->States()[0].in_flight, 0u);
}

TEST_F(EngineLinkTest, DropsRepeatedIdsAndAsksForMissingOnes) {
  ConnectReady();
  const uint64_t id = Submit(sink_);
  engine_->ReceiveSubmit();
  engine_->SendIds(id, 0, {1, 2});
  engine_->SendIds(id, 0, {1, 2});
  engine_->SendIds(id, 1, {2, 3});
  EXPECT_THAT(sink_->WaitIds(3), ElementsAre(1, 2, 3));
  engine_->SendIds(id, 5, {6});  // 4 and 5 were lost
  const wire::ToScheduler asked = engine_->Receive([&](const wire::ToScheduler& m) {
    return m.has_lease() && m.lease().num_received_size() == 1 && m.lease().num_received(0) == 3;
  });
  EXPECT_EQ(asked.lease().ids(0), id);
  engine_->SendIds(id, 3, {4, 5, 6});
  engine_->SendIds(id, 6, {7}, wire::END_STOP);
  EXPECT_THAT(sink_->WaitEnd(), ElementsAre(1, 2, 3, 4, 5, 6, 7));
  EXPECT_GE(pool_->States()[0].gaps, 1u);
}

TEST_F(EngineLinkTest, SubmitsAgainWithItsIdsWhatTheEngineDoesNotKnow) {
  ConnectReady();
  const uint64_t id = Submit(sink_);
  const uint64_t seed = engine_->ReceiveSubmit().sampling().seed();
  engine_->SendIds(id, 0, {1, 2});
  sink_->WaitIds(2);
  // A scheduler of another epoch takes the address over.
  const std::string address = engine_->address();
  engine_ = nullptr;
  engine_ = std::make_unique<FakeEngine>(2, address);
  engine_->SendStatus(engine_->ReceiveLease(), true, {id});
  const wire::Submit again = engine_->ReceiveSubmit();
  EXPECT_EQ(again.id(), id);
  EXPECT_EQ(again.prompt_len(), 3);
  EXPECT_THAT(again.ids(), ElementsAre(11, 12, 13, 1, 2));
  EXPECT_EQ(again.sampling().seed(), seed);
  EXPECT_EQ(again.sampling().max_tokens(), 100);
  engine_->SendIds(id, 2, {3}, wire::END_LENGTH);
  EXPECT_THAT(sink_->WaitEnd(), ElementsAre(1, 2, 3));
  EXPECT_EQ(pool_->States()[0].resubmissions, 1u);
}

TEST_F(EngineLinkTest, AnswersToLeasesOfBeforeAResubmissionDoNotCount) {
  ConnectReady();
  const wire::Lease before = engine_->ReceiveLease();
  const uint64_t id = Submit(sink_);
  engine_->ReceiveSubmit();
  engine_->SendStatus(before, true, {id});  // the engine didn't have it then
  engine_->SendIds(id, 0, {1}, wire::END_LENGTH);
  sink_->WaitEnd();
  EXPECT_EQ(pool_->States()[0].resubmissions, 0u);
}

TEST_F(EngineLinkTest, CancelIsSentAtOnceAndLateIdsAreIgnored) {
  ConnectReady();
  const uint64_t id = Submit(sink_);
  engine_->ReceiveSubmit();
  engine_->SendIds(id, 0, {1});
  sink_->WaitIds(1);
  pool_->Cancel(id);
  const auto cancel = engine_->Receive([](const auto& m) { return m.has_cancel(); });
  EXPECT_THAT(cancel.cancel().ids(), ElementsAre(id));
  engine_->SendIds(id, 1, {2});
  auto other = std::make_shared<Sink>();
  const uint64_t other_id = Submit(other);
  engine_->SendIds(other_id, 0, {5}, wire::END_STOP);
  EXPECT_THAT(other->WaitEnd(), ElementsAre(5));
  EXPECT_THAT(sink_->WaitIds(1), ElementsAre(1));
}

TEST_F(EngineLinkTest, ASinkThatStopsIsCancelled) {
  ConnectReady();
  sink_->StopAt(2);
  const uint64_t id = Submit(sink_);
  engine_->ReceiveSubmit();
  engine_->SendIds(id, 0, {1, 2});
  const auto cancel = engine_->Receive([](const auto& m) { return m.has_cancel(); });
  EXPECT_THAT(cancel.cancel().ids(), ElementsAre(id));
  EXPECT_EQ(pool_->States()[0].in_flight, 0u);
}

TEST_F(EngineLinkTest, ErrorsEndTheirRequestAlone) {
  ConnectReady();
  auto other = std::make_shared<Sink>();
  const uint64_t id = Submit(sink_);
  const uint64_t other_id = Submit(other);
  engine_->ReceiveSubmit();
  engine_->SendError(id, absl::StatusCode::kResourceExhausted, "the queue is full");
  sink_->WaitEnd();
  EXPECT_EQ(sink_->failure(), absl::ResourceExhaustedError("the queue is full"));
  engine_->SendIds(other_id, 0, {1}, wire::END_LENGTH);
  EXPECT_THAT(other->WaitEnd(), ElementsAre(1));
}

TEST_F(EngineLinkTest, MalformedDeltasAreDropped) {
  ConnectReady();
  const uint64_t id = Submit(sink_);
  engine_->ReceiveSubmit();
  wire::ToRouter short_column, short_ids, bad_extra;
  short_column.mutable_deltas()->add_id(id);
  short_ids.mutable_deltas()->add_id(id);
  short_ids.mutable_deltas()->add_first(0);
  short_ids.mutable_deltas()->add_count(1000);
  bad_extra.mutable_deltas()->add_extra()->set_index(7);
  for (const auto& message : {short_column, short_ids, bad_extra}) engine_->Send(message);
  engine_->SendIds(id, 0, {1}, wire::END_LENGTH);
  EXPECT_THAT(sink_->WaitEnd(), ElementsAre(1));
}

TEST_F(EngineLinkTest, RequestsOfAnEngineThatStaysAwayEndAfterTheTimeout) {
  LinkOptions options = Options();
  options.silent_ms = 100;
  options.grace_ms = 200;
  options.timeout_ms = 300;
  Connect({engine_->address()}, options);
  engine_->BecomeReady();
  WaitReady();
  Submit(sink_);
  sink_->WaitEnd();  // nothing more comes from the engine
  EXPECT_TRUE(absl::IsUnavailable(sink_->failure())) << sink_->failure();
  EXPECT_THAT(Message(pool_->Ready()), HasSubstr("silent"));
  EXPECT_TRUE(absl::IsUnavailable(pool_->Submit(MakeSubmit(), true, sink_).status()));
}

TEST_F(EngineLinkTest, RequestsWaitForAnEngineThatIsExpectedBack) {
  ConnectReady();
  engine_->SendStatus(engine_->ReceiveLease(), false, {}, "rank 0 starts anew");
  while (pool_->Ready().ok()) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_TRUE(pool_->Accepts().ok());
  const uint64_t id = Submit(sink_);
  engine_->ReceiveSubmit();
  engine_->BecomeReady();
  engine_->SendIds(id, 0, {1}, wire::END_LENGTH);
  EXPECT_THAT(sink_->WaitEnd(), ElementsAre(1));
}

TEST_F(EngineLinkTest, RequestsOfALostEngineGoOnAtAnotherOne) {
  LinkOptions options = Options();
  options.silent_ms = 300;
  FakeEngine second(7);
  Connect({engine_->address(), second.address()}, options);
  engine_->BecomeReady();
  WaitReady();
  const uint64_t id = Submit(sink_);  // the second one isn't ready yet
  engine_->ReceiveSubmit();
  engine_->SendIds(id, 0, {1, 2});
  sink_->WaitIds(2);
  // From here on the first is silent.
  wire::Submit moved;
  while (moved.id() != id) {
    const auto message =
        second.Receive([](const auto& m) { return m.has_lease() || m.submit_size() != 0; });
    if (message.has_lease()) second.SendStatus(message.lease(), true);
    if (message.submit_size() != 0) moved = message.submit(0);
    ASSERT_FALSE(HasFailure());
  }
  EXPECT_THAT(moved.ids(), ElementsAre(11, 12, 13, 1, 2));
  second.SendIds(id, 2, {3}, wire::END_LENGTH);
  EXPECT_THAT(sink_->WaitEnd(), ElementsAre(1, 2, 3));
}

TEST_F(EngineLinkTest, StopEndsRequestsAndSaysGoodbye) {
  ConnectReady();
  Submit(sink_);
  pool_->Stop(Unavailable("bye"));
  sink_->WaitEnd();
  EXPECT_EQ(Message(sink_->failure()), "bye");
  EXPECT_TRUE(engine_->Receive([](const auto& m) { return m.goodbye(); }).goodbye());
}

// Whatever order, loss and repetition: the sink gets every id once, in order.
TEST_F(EngineLinkTest, AnyLossAndRepetitionHeals) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  ConnectReady();
  const uint64_t id = Submit(sink_);
  engine_->ReceiveSubmit();
  std::vector<int32_t> all(200);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int32_t>(i);
  for (size_t produced = 0; produced < all.size();) {
    const size_t count = std::min<size_t>(1 + random() % 5, all.size() - produced);
    const size_t back = std::min<size_t>(random() % 4, produced);
    if (random() % 4 != 0) {
      engine_->SendIds(id, static_cast<uint32_t>(produced - back),
                       {all.begin() + static_cast<ptrdiff_t>(produced - back),
                        all.begin() + static_cast<ptrdiff_t>(produced + count)});
    }
    produced += count;
  }
  while (true) {  // as a scheduler does: each lease is answered with what it lacks
    const wire::Lease lease = engine_->ReceiveLease();
    ASSERT_EQ(lease.ids_size(), 1);
    const uint32_t received = lease.num_received(0);
    if (received == all.size()) break;
    engine_->SendIds(id, received, {all.begin() + received, all.end()});
  }
  engine_->SendIds(id, static_cast<uint32_t>(all.size()), {}, wire::END_LENGTH);
  EXPECT_EQ(sink_->WaitEnd(), all);
}

}  // namespace
}  // namespace penstock::router
