#include "router/engine/engine_link.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <tuple>
#include <vector>

#include "router/engine/retry_after.h"
#include "tests/unit/router/engine/link_fixture.h"

// libzmq isn't built with TSan, which therefore can't see that it hands messages over in order:
// what it does itself is not looked at, what happens in this repository's code is.
// NOLINTNEXTLINE(bugprone-reserved-identifier): TSan names it so.
extern "C" const char* __tsan_default_suppressions();
// NOLINTNEXTLINE(bugprone-reserved-identifier)
extern "C" const char* __tsan_default_suppressions() { return "called_from_lib:libzmq.so\n"; }

namespace penstock::router {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

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
  EXPECT_TRUE(absl::IsUnavailable(SubmitAll({Open(sink_)}).status()));
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
  EXPECT_EQ(submit.timeout_ms(), 0);
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
  engine_->ReceiveSubmit();
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
  EXPECT_EQ(again.sampling().seed(), 42u);
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
  pool_->Cancel({&id, 1});
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

TEST_F(EngineLinkTest, NothingComesAfterAStopInTheSameMessage) {
  ConnectReady();
  sink_->StopAt(1);
  auto failing = std::make_shared<Sink>();
  failing->StopAt(1);
  const uint64_t id = Submit(sink_);
  const uint64_t failing_id = Submit(failing);
  wire::ToRouter message;  // two steps' rows, and an error behind a stop
  wire::Deltas& deltas = *message.mutable_deltas();
  for (const auto& [row_id, first, count] :
       {std::tuple{id, 0, 1}, {id, 1, 1}, {failing_id, 0, 1}, {failing_id, 1, 0}}) {
    deltas.add_id(row_id);
    deltas.add_first(first);
    deltas.add_count(count);
    deltas.add_end(count == 0 ? wire::END_ERROR : wire::END_NONE);
    for (int i = 0; i < count; ++i) deltas.add_token_ids(5);
  }
  engine_->Send(message);
  const auto cancel = engine_->Receive([](const auto& m) { return m.has_cancel(); });
  EXPECT_THAT(cancel.cancel().ids(), ElementsAre(id, failing_id));
  EXPECT_THAT(sink_->WaitIds(1), ElementsAre(5));
  EXPECT_THAT(failing->WaitIds(1), ElementsAre(5));
  EXPECT_TRUE(failing->failure().ok());
}

TEST_F(EngineLinkTest, ErrorsEndTheirRequestAlone) {
  ConnectReady();
  auto other = std::make_shared<Sink>();
  const uint64_t id = Submit(sink_);
  const uint64_t other_id = Submit(other);
  engine_->ReceiveSubmit();
  engine_->SendError(id, absl::StatusCode::kResourceExhausted, "the queue is full", 7);
  sink_->WaitEnd();
  EXPECT_TRUE(absl::IsResourceExhausted(sink_->failure()));
  EXPECT_EQ(Message(sink_->failure()), "the queue is full");
  EXPECT_EQ(RetryAfter(sink_->failure()), 7u);
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
  EXPECT_TRUE(absl::IsUnavailable(SubmitAll({Open(sink_)}).status()));
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
