// What goes out to an engine of a request's choices and of its deadline.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>

#include "tests/unit/router/engine/link_fixture.h"

namespace penstock::router {
namespace {

using testing::ElementsAre;

using SubmitTest = EngineLinkTest;

TEST_F(SubmitTest, ChoicesGoOutAndAreCancelledTogether) {
  FakeEngine other(2);
  Connect({engine_->address(), other.address()});
  engine_->BecomeReady();
  WaitReady();
  const auto second = std::make_shared<Sink>();
  const auto ids = SubmitAll({Open(sink_), Open(second)});
  ASSERT_TRUE(ids.ok()) << ids.status();
  const auto message = engine_->Receive([](const auto& m) { return m.submit_size() != 0; });
  ASSERT_EQ(message.submit_size(), 2) << "in one message, so that none runs before all have come";
  EXPECT_EQ(message.submit(0).id(), (*ids)[0]);
  EXPECT_EQ(message.submit(1).id(), (*ids)[1]);
  engine_->SendIds((*ids)[1], 0, {5}, wire::END_LENGTH);
  EXPECT_THAT(second->WaitEnd(), ElementsAre(5));
  pool_->Cancel(*ids);
  const auto cancel = engine_->Receive([](const auto& m) { return m.has_cancel(); });
  EXPECT_THAT(cancel.cancel().ids(), ElementsAre((*ids)[0])) << "the other has ended";
}

TEST(SubmitNow, SaysWhatIsLeftOfTheTime) {
  OpenRequest request;
  const std::chrono::steady_clock::time_point now(std::chrono::hours(1));
  const auto timeout_ms = [&](std::chrono::microseconds left) {
    request.deadline = now + left;
    return SubmitNow(request, now).timeout_ms();
  };
  EXPECT_EQ(SubmitNow(request, now).timeout_ms(), 0);
  EXPECT_EQ(timeout_ms(std::chrono::seconds(2)), 2000);
  EXPECT_EQ(timeout_ms(std::chrono::microseconds(1)), 1) << "0 would be no deadline";
  EXPECT_EQ(timeout_ms(std::chrono::microseconds(0)), -1);
  EXPECT_EQ(timeout_ms(std::chrono::seconds(-2)), -2000);
}

TEST_F(SubmitTest, AResubmissionSaysWhatIsLeftThen) {
  ConnectReady();
  auto request = Open(sink_);
  request->deadline = std::chrono::steady_clock::now() + std::chrono::hours(1);
  const auto ids = SubmitAll({request});
  ASSERT_TRUE(ids.ok()) << ids.status();
  const auto received = std::chrono::steady_clock::now();
  const int64_t first = engine_->ReceiveSubmit().timeout_ms();
  EXPECT_LE(first, 3'600'000);
  EXPECT_GT(first, 0);
  while (std::chrono::steady_clock::now() < received + std::chrono::milliseconds(2)) {
  }
  engine_->SendStatus(engine_->ReceiveLease(), true, *ids);
  const int64_t again = engine_->ReceiveSubmit().timeout_ms();
  EXPECT_LT(again, first);
  EXPECT_GT(again, 0);
}

TEST_F(SubmitTest, LateRequestsOfAnEngineThatIsAwayEnd) {
  LinkOptions options = Options();
  options.silent_ms = 100;
  Connect({engine_->address()}, options);
  engine_->BecomeReady();
  WaitReady();
  auto request = Open(sink_);
  request->deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(300);
  const auto other = std::make_shared<Sink>();
  ASSERT_TRUE(SubmitAll({request, Open(other)}).ok());
  sink_->WaitEnd();  // nothing more comes from the engine
  EXPECT_TRUE(absl::IsDeadlineExceeded(sink_->failure())) << sink_->failure();
  EXPECT_EQ(pool_->States()[0].in_flight, 1u) << "the other has time";
}

}  // namespace
}  // namespace penstock::router
