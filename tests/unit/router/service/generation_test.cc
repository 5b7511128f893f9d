#include "router/service/generation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/unit/router/test_models.h"

namespace penstock::router {
namespace {

using testing::ElementsAre;

class Listener final : public OutputListener {
 public:
  void OnOutputReady() override { ++calls; }
  int calls = 0;
};

class GenerationTest : public testing::Test {
 protected:
  void Make(Delivery delivery = Delivery::kCoalesced) {
    request_.prompt = "hi";
    generation_ = std::make_shared<Generation>(request_, std::vector<int32_t>{'h', 'i'},
                                               *tokenizer_, metrics_, listener_, delivery);
  }
  void Start(Delivery delivery = Delivery::kCoalesced) {
    Make(delivery);
    EXPECT_TRUE(generation_->Open([this] { ++ends_; }));
    generation_->SetCanceller([this] { ++cancels_; });
  }
  SinkAction Feed(const std::vector<int32_t>& ids, wire::EndReason end = wire::END_NONE,
                  const wire::Extra* extra = nullptr) {
    return FeedChoice(0, ids, end, extra);
  }
  SinkAction FeedChoice(int choice, const std::vector<int32_t>& ids,
                        wire::EndReason end = wire::END_NONE, const wire::Extra* extra = nullptr) {
    const auto sink = generation_->Sink(choice);
    const SinkAction action = sink->OnTokens({.ids = ids, .end = end, .extra = extra, .skip = 0});
    sink->Flush();
    return action;
  }
  Output Take() {
    Output output;
    EXPECT_TRUE(generation_->Take(&output));
    return output;
  }
  bool Empty() {
    Output output;
    return !generation_->Take(&output);
  }

  const std::unique_ptr<Tokenizer> tokenizer_ = MakeTinyTokenizer();
  Metrics metrics_{"m"};
  std::shared_ptr<Listener> listener_ = std::make_shared<Listener>();
  GenerationRequest request_;
  std::shared_ptr<Generation> generation_;
  int ends_ = 0;
  int cancels_ = 0;
};

TEST_F(GenerationTest, MergesWhatWaitsAndAnnouncesItOnce) {
  Start();
  Feed({'a'});
  Feed({'b'});
  Feed({'c', 'd'});
  EXPECT_EQ(listener_->calls, 1);
  const Output output = Take();
  EXPECT_EQ(output.text, "abcd");
  EXPECT_EQ(output.usage.completion_tokens, 4);
  EXPECT_FALSE(output.last);
  EXPECT_TRUE(Empty());
  Feed({'e'});
  EXPECT_EQ(listener_->calls, 2);
  EXPECT_EQ(ends_, 0);
}

TEST_F(GenerationTest, OneOutputATokenIfWanted) {
  request_.return_token_ids = true;
  Start(Delivery::kPerToken);
  Feed({'a', 'b'});
  Feed({'c'}, wire::END_LENGTH);
  EXPECT_EQ(Take().text, "a");
  EXPECT_THAT(Take().ids, ElementsAre('b'));
  const Output last = Take();
  EXPECT_EQ(last.finish, Finish::kLength);
  EXPECT_EQ(last.usage.completion_tokens, 3);
  EXPECT_EQ(ends_, 1);
}

TEST_F(GenerationTest, WholeAnswersAreAnnouncedAtTheEndAlone) {
  Start(Delivery::kWhole);
  Feed({'a'});
  Feed({'b'});
  EXPECT_EQ(listener_->calls, 0);
  Feed({'c'}, wire::END_LENGTH);
  EXPECT_EQ(listener_->calls, 1);
  EXPECT_EQ(Take().text, "abc");
}

TEST_F(GenerationTest, HalfACharacterIsNoOutput) {
  Start();
  Feed({0xc3});
  EXPECT_EQ(listener_->calls, 0);
  Feed({0xa9});
  EXPECT_EQ(Take().text, "é");
  Feed({0xc3}, wire::END_LENGTH);
  EXPECT_EQ(Take().text, "\xEF\xBF\xBD");
}

TEST_F(GenerationTest, TheStopIdIsCountedAndIsNoText) {
  request_.return_token_ids = true;
  Start();
  Feed({'a', 261}, wire::END_STOP);  // EOS
  const Output output = Take();
  EXPECT_EQ(output.text, "a");
  EXPECT_EQ(output.finish, Finish::kStop);
  EXPECT_EQ(output.stop_token_id, -1);
  EXPECT_EQ(output.usage.completion_tokens, 2);
  EXPECT_THAT(output.ids, ElementsAre('a', 261));
}

TEST_F(GenerationTest, TheUsersStopIdIsNamed) {
  Start();
  Feed({'a', 'b'}, wire::END_STOP);
  const Output output = Take();
  EXPECT_EQ(output.text, "a");
  EXPECT_EQ(output.stop_token_id, 'b');
}

TEST_F(GenerationTest, StopStringsEndItAndTheEngineIsTold) {
  request_.stop = {"zz", "ello"};
  request_.return_token_ids = true;
  Start();
  EXPECT_EQ(Feed({'a', 258}), SinkAction::kContinue);  // "hell": may become a stop string
  EXPECT_EQ(Take().text, "ah");
  EXPECT_EQ(Feed({'o', 'x', 'y'}), SinkAction::kStop);
  const Output output = Take();
  EXPECT_EQ(output.text, "");
  EXPECT_EQ(output.finish, Finish::kStop);
  EXPECT_EQ(output.stop_string, "ello");
  EXPECT_EQ(output.usage.completion_tokens, 3);  // up to the one that completed it
  EXPECT_THAT(output.ids, ElementsAre('o'));
  EXPECT_EQ(Feed({'z'}), SinkAction::kStop);
  EXPECT_TRUE(Empty());
  EXPECT_EQ(ends_, 1);
}

TEST_F(GenerationTest, HeldTextComesWithTheEnd) {
  request_.stop = {"hello"};
  Start();
  Feed({258});
  EXPECT_EQ(listener_->calls, 0);
  Feed({'!'}, wire::END_LENGTH);
  EXPECT_EQ(Take().text, "hell!");
}

TEST_F(GenerationTest, FailuresKeepWhatCameBefore) {
  Start();
  Feed({'a'});
  generation_->Fail(Unavailable("gone"));
  generation_->Flush();
  EXPECT_EQ(Take().text, "a");
  const Output output = Take();
  EXPECT_EQ(Message(output.failure), "gone");
  EXPECT_TRUE(output.last);
  EXPECT_EQ(cancels_, 0) << "the engine ended it";
  EXPECT_EQ(ends_, 1);
}

TEST_F(GenerationTest, CancelTellsTheEngineOnce) {
  Start();
  Feed({'a'});
  generation_->Cancel();
  generation_->Cancel();
  EXPECT_EQ(cancels_, 1);
  EXPECT_EQ(ends_, 1);
  EXPECT_TRUE(Empty());
  EXPECT_EQ(Feed({'b'}), SinkAction::kStop);
  generation_->Fail(Unavailable("late"));
  EXPECT_TRUE(Empty());
  EXPECT_EQ(ends_, 1);
}

TEST_F(GenerationTest, CancelledBeforeTheEngineHadIt) {
  Make();
  EXPECT_TRUE(generation_->Open([this] { ++ends_; }));
  generation_->Cancel();
  generation_->SetCanceller([this] { ++cancels_; });
  EXPECT_EQ(cancels_, 1);
}

TEST_F(GenerationTest, CancelledBeforeItWasOpened) {
  Make();
  generation_->Cancel();
  EXPECT_FALSE(generation_->Open([this] { ++ends_; }));
  EXPECT_EQ(ends_, 0);
}

TEST_F(GenerationTest, AReaderThatIsTooSlowIsCutOff) {
  request_.sampling.set_num_top_logprobs(20);
  request_.return_logprobs = true;
  Start();
  wire::Extra extra;
  for (int i = 0; i < 1000; ++i) {
    wire::Logprob* logprob = extra.add_logprobs();
    for (int top = 0; top < 20; ++top) {
      logprob->add_top_ids(top);
      logprob->add_top_logprobs(-1);
    }
  }
  const std::vector<int32_t> ids(1000, 'a');
  SinkAction action = SinkAction::kContinue;
  for (int i = 0; i < 1000 && action == SinkAction::kContinue; ++i) {
    action = Feed(ids, wire::END_NONE, &extra);
  }
  EXPECT_EQ(action, SinkAction::kStop);
  const Output output = Take();
  EXPECT_TRUE(absl::IsResourceExhausted(output.failure));
  EXPECT_EQ(ends_, 1);
}

TEST_F(GenerationTest, LogprobsOfRepeatedIdsAreSkipped) {
  request_.sampling.set_num_top_logprobs(0);
  request_.return_logprobs = true;
  Start();
  wire::Extra extra;
  for (int i = 0; i < 3; ++i) extra.add_logprobs()->set_logprob(static_cast<float>(-i));
  extra.set_cached_tokens(16);
  const std::vector<int32_t> ids = {'b', 'c'};
  generation_->Sink(0)->OnTokens({.ids = ids, .end = wire::END_NONE, .extra = &extra, .skip = 1});
  const Output output = Take();
  ASSERT_EQ(output.logprobs.size(), 2u);
  EXPECT_EQ(output.logprobs[0].id, 'b');
  EXPECT_EQ(output.logprobs[0].logprob, -1);
  EXPECT_EQ(output.logprobs[1].logprob, -2);
  EXPECT_EQ(output.usage.cached_tokens, 16);
}

// A reader on another thread takes everything, once and in order, whatever the timing.
TEST_F(GenerationTest, WriterAndReaderRace) {
  Start();
  std::string text;
  std::thread reader([&] {
    Output output;
    while (!output.last) {
      if (generation_->Take(&output)) text += output.text;
    }
  });
  std::string expected;
  for (int i = 0; i < 20'000; ++i) {
    const char c = static_cast<char>('a' + i % 26);
    expected += c;
    Feed({c}, i == 19'999 ? wire::END_LENGTH : wire::END_NONE);
  }
  reader.join();
  EXPECT_EQ(text, expected);
}

}  // namespace
}  // namespace penstock::router
