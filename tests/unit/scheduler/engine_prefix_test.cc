// Prompts that begin alike, over the wire: what is computed once, and for whom. Real scheduler and
// worker processes (null device); pages of 16 tokens.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/scheduler/engine_fixture.h"

namespace penstock::scheduler {
namespace {

class EnginePrefixTest : public EngineTest {
 protected:
  // A request whose prompt begins with `num_common` ids that are the same for all; the next differ.
  wire::Submit Make(uint64_t id, int num_common, int prompt_len, const std::string& salt = "") {
    wire::Submit submit = RouterClient::MakeSubmit(id, prompt_len, 20);
    for (int i = 0; i < num_common; ++i) submit.set_ids(i, 2000 + i);
    if (num_common < prompt_len) submit.set_ids(num_common, static_cast<int32_t>(10'000 + id));
    submit.set_cache_salt(salt);
    return submit;
  }
  // Runs it alone, to its end; returns its cached tokens.
  uint32_t Run(const wire::Submit& submit) {
    client_->Submit(submit);
    EXPECT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
    ExpectWhole(client_->streams[submit.id()]);
    return client_->streams[submit.id()].cached_tokens;
  }
};

TEST_F(EnginePrefixTest, WholePagesOfACommonBeginningAreComputedOnce) {
  Start();
  EXPECT_EQ(Run(Make(1, 200, 250)), 0u);
  EXPECT_EQ(Run(Make(2, 200, 250)), 192u);
  EXPECT_EQ(Run(Make(3, 100, 250)), 96u);
  EXPECT_EQ(Run(Make(4, 15, 250)), 0u);
  EXPECT_EQ(Run(Make(5, 200, 201)), 192u);
  // Its last id is computed: a row must yield the next.
  EXPECT_EQ(Run(Make(6, 192, 192)), 176u);
  EXPECT_EQ(Run(Make(7, 193, 193)), 192u);
  EXPECT_TRUE(client_->WaitStatus([](const wire::Status& status) {
    return status.prefix_queries() == 4 * 250 + 201 + 192 + 193 &&
           status.prefix_hits() == 192 + 96 + 192 + 176 + 192;
  }));
  ExpectAllFree();
}

TEST_F(EnginePrefixTest, AConversationGoesOnFromItsOutputs) {
  Start();
  wire::Submit turn = Make(1, 0, 30);
  EXPECT_EQ(Run(turn), 0u);
  for (uint64_t id = 2; id <= 10; ++id) {
    for (int32_t output : client_->streams[id - 1].outputs) turn.add_ids(output);
    // The last output has been sampled, but not computed.
    const int computed = turn.ids_size() - 1;
    for (int i = 0; i < 5; ++i) turn.add_ids(static_cast<int32_t>(3000 + i * id));
    turn.set_id(id);
    turn.set_prompt_len(turn.ids_size());
    EXPECT_EQ(Run(turn), computed / 16 * 16u);
  }
  ExpectAllFree();
}

TEST_F(EnginePrefixTest, SaltsShareNothing) {
  Start();
  EXPECT_EQ(Run(Make(1, 200, 250, "a")), 0u);
  EXPECT_EQ(Run(Make(2, 200, 250, "b")), 0u);
  EXPECT_EQ(Run(Make(3, 200, 250)), 0u);
  EXPECT_EQ(Run(Make(4, 200, 250, "b")), 192u);
  EXPECT_EQ(Run(Make(5, 200, 250, "a")), 192u);
}

TEST_F(EnginePrefixTest, PromptLogprobsAreComputedAnew) {
  Start();
  EXPECT_EQ(Run(Make(1, 200, 250)), 0u);
  wire::Submit submit = Make(2, 200, 250);
  submit.mutable_sampling()->set_num_prompt_logprobs(0);
  EXPECT_EQ(Run(submit), 0u);
  EXPECT_EQ(client_->streams[2].prompt_logprobs.size(), 249u);
  EXPECT_TRUE(client_->WaitStatus(
      [](const wire::Status& status) { return status.prefix_queries() == 250; }));
}

TEST_F(EnginePrefixTest, ItCanBeSwitchedOff) {
  Start({"--no-enable-prefix-caching"});
  EXPECT_EQ(Run(Make(1, 200, 250)), 0u);
  EXPECT_EQ(Run(Make(2, 200, 250)), 0u);
  EXPECT_TRUE(
      client_->WaitStatus([](const wire::Status& status) { return status.prefix_queries() == 0; }));
  ExpectAllFree();
}

TEST_F(EnginePrefixTest, IdsAreTheSameWhereverPagesComeFrom) {
  // Few pages, so that some are evicted and requests are preempted; ranks of which each checks that
  // its plans can be carried out.
  Start({"--max-num-seqs=8"}, {"--num-kv-pages=48", "--max-model-len=512"}, 2);
  for (uint64_t id = 1; id <= 60; ++id) {
    client_->Submit(Make(id, static_cast<int>(id * 37 % 200), 210, id % 3 == 0 ? "a" : ""));
  }
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  const auto shared = std::move(client_->streams);
  EXPECT_TRUE(
      client_->WaitStatus([](const wire::Status& status) { return status.prefix_hits() > 0; }));
  ExpectAllFree();
  TearDown();
  Start({"--no-enable-prefix-caching"});
  for (const auto& [id, stream] : shared) client_->Submit(stream.submit);
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  for (const auto& [id, stream] : client_->streams) {
    ExpectWhole(stream);
    EXPECT_EQ(stream.outputs, shared.at(id).outputs);
  }
}

TEST_F(EnginePrefixTest, CachedTokensComeAgainIfTheyGotLost) {
  Start({}, {"--num-kv-pages=4096", "--max-model-len=4096", "--null-step-us=2000"});
  client_->lease_ms = 50;
  EXPECT_EQ(Run(Make(1, 200, 250)), 0u);
  wire::Submit submit = Make(2, 200, 250);
  submit.mutable_sampling()->set_max_tokens(500);
  client_->drop_deltas = true;
  client_->Submit(submit);
  const uint64_t messages = client_->num_messages;
  ASSERT_TRUE(client_->PumpUntil([&] { return client_->num_messages > messages + 50; }));
  client_->drop_deltas = false;
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  ExpectWhole(client_->streams[2]);
  EXPECT_EQ(client_->streams[2].num_resubmitted, 0);
  EXPECT_EQ(client_->streams[2].cached_tokens, 192u);
}

TEST_F(EnginePrefixTest, NothingIsSharedAcrossTheDeathOfARank) {
  Start();
  EXPECT_EQ(Run(Make(1, 200, 250)), 0u);
  workers_[0].Kill();
  ASSERT_TRUE(client_->PumpUntil([this] { return !client_->status.ready(); }));
  StartWorker(0);
  ASSERT_TRUE(client_->WaitReady());
  EXPECT_EQ(Run(Make(2, 200, 250)), 0u);
  EXPECT_EQ(Run(Make(3, 200, 250)), 192u);
  ExpectAllFree();
}

}  // namespace
}  // namespace penstock::scheduler
