// A generation of several choices: one stream of outputs, one end.
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "router/service/generation.h"
#include "tests/unit/router/test_models.h"

namespace penstock::router {
namespace {

class Listener final : public OutputListener {
 public:
  void OnOutputReady() override { ++calls; }
  std::atomic<int> calls = 0;
};

class ChoicesTest : public testing::Test {
 protected:
  void Start(int num_choices, Delivery delivery = Delivery::kCoalesced) {
    request_.prompt = "hi";
    request_.num_choices = request_.n = num_choices;
    generation_ = std::make_shared<Generation>(request_, std::vector<int32_t>{'h', 'i'},
                                               *tokenizer_, metrics_, listener_, delivery);
    EXPECT_TRUE(generation_->Open([this] { ++ends_; }));
    generation_->SetCanceller([this] { ++cancels_; });
  }
  SinkAction Feed(int choice, const std::vector<int32_t>& ids, wire::EndReason end = wire::END_NONE,
                  int cached = 0) {
    wire::Extra extra;
    extra.set_cached_tokens(cached);
    for (const int32_t id : ids) extra.add_logprobs()->set_logprob(static_cast<float>(-id));
    const auto sink = generation_->Sink(choice);
    const SinkAction action = sink->OnTokens({.ids = ids, .end = end, .extra = &extra, .skip = 0});
    sink->Flush();
    return action;
  }
  void FailChoice(int choice, const absl::Status& status) {
    const auto sink = generation_->Sink(choice);
    sink->OnFailure(status);
    sink->Flush();
  }
  std::vector<Output> TakeAll() {
    std::vector<Output> outputs;
    for (Output output; generation_->Take(&output);) outputs.push_back(std::move(output));
    return outputs;
  }
  double Ended(const std::string& reason) {
    const std::string text = metrics_.Render({});
    const size_t at = text.find("finished_reason=\"" + reason + "\"");
    return at == std::string::npos ? 0 : std::stod(text.substr(text.find("} ", at) + 2));
  }

  const std::unique_ptr<Tokenizer> tokenizer_ = MakeTinyTokenizer();
  Metrics metrics_{"m"};
  std::shared_ptr<Listener> listener_ = std::make_shared<Listener>();
  GenerationRequest request_;
  std::shared_ptr<Generation> generation_;
  std::atomic<int> ends_ = 0;
  std::atomic<int> cancels_ = 0;
};

TEST_F(ChoicesTest, EachHasItsOutputsAndOneOfAllIsTheLast) {
  Start(3);
  Feed(1, {'a'});
  Feed(0, {'b'});
  Feed(1, {'c'});  // merged with its first
  EXPECT_EQ(listener_->calls, 1);
  std::vector<Output> outputs = TakeAll();
  ASSERT_EQ(outputs.size(), 2u);
  EXPECT_EQ(outputs[0].choice, 1);
  EXPECT_EQ(outputs[0].text, "ac");
  EXPECT_EQ(outputs[0].usage.completion_tokens, 2);
  EXPECT_EQ(outputs[1].choice, 0);
  EXPECT_EQ(outputs[1].text, "b");
  EXPECT_EQ(outputs[1].usage.completion_tokens, 3);

  Feed(1, {}, wire::END_LENGTH);
  Feed(2, {'d'}, wire::END_STOP);  // hides the stop id
  outputs = TakeAll();
  EXPECT_EQ(outputs[0].finish, Finish::kLength);
  EXPECT_EQ(outputs[1].finish, Finish::kStop);
  EXPECT_FALSE(outputs[0].last || outputs[1].last);
  EXPECT_EQ(ends_, 0);
  Feed(0, {'e'}, wire::END_LENGTH);
  outputs = TakeAll();
  ASSERT_EQ(outputs.size(), 1u);
  EXPECT_TRUE(outputs[0].last);
  EXPECT_EQ(outputs[0].usage.completion_tokens, 5);
  EXPECT_EQ(ends_, 1);
  EXPECT_EQ(cancels_, 0);
  EXPECT_EQ(Ended("length"), 2);
  EXPECT_EQ(Ended("stop"), 1);
}

TEST_F(ChoicesTest, TheLastIsWhatIsTakenLast) {
  Start(2);
  Feed(0, {'a'});
  Feed(1, {'b'}, wire::END_LENGTH);
  Feed(0, {'c'}, wire::END_LENGTH);  // ends all, and is merged into what is taken first
  const std::vector<Output> outputs = TakeAll();
  ASSERT_EQ(outputs.size(), 2u);
  EXPECT_EQ(outputs[0].choice, 0);
  EXPECT_FALSE(outputs[0].last);
  EXPECT_TRUE(outputs[1].last);
  EXPECT_EQ(outputs[1].usage.completion_tokens, 3);
}

TEST_F(ChoicesTest, WholeAnswersWaitForAll) {
  Start(2, Delivery::kWhole);
  Feed(0, {'a'});
  Feed(1, {'b'}, wire::END_LENGTH);
  EXPECT_EQ(listener_->calls, 0);
  EXPECT_TRUE(TakeAll().empty());
  Feed(0, {'c'}, wire::END_LENGTH);
  EXPECT_EQ(listener_->calls, 1);
  const std::vector<Output> outputs = TakeAll();
  ASSERT_EQ(outputs.size(), 2u);
  EXPECT_EQ(outputs[0].text, "ac");
  EXPECT_EQ(outputs[1].text, "b");
}

TEST_F(ChoicesTest, CachedTokensAreThoseThatNoneComputed) {
  Start(2);
  Feed(0, {'a'}, wire::END_NONE, 16);
  EXPECT_EQ(TakeAll().back().usage.cached_tokens, 16);
  Feed(1, {'b'}, wire::END_LENGTH, 48);
  Feed(0, {'c'}, wire::END_LENGTH);
  EXPECT_EQ(TakeAll().back().usage.cached_tokens, 16);
}

TEST_F(ChoicesTest, AFailureEndsAllOnceAndCancelsTheOthers) {
  Start(3);
  Feed(0, {'a'}, wire::END_LENGTH);
  Feed(1, {'b'});
  FailChoice(2, ResourceExhausted("full"));
  EXPECT_EQ(cancels_, 1);
  EXPECT_EQ(ends_, 1);
  EXPECT_EQ(Feed(1, {'c'}), SinkAction::kStop);
  FailChoice(1, Unavailable("too"));
  std::vector<Output> outputs = TakeAll();
  ASSERT_EQ(outputs.size(), 3u);
  EXPECT_EQ(outputs[0].text, "a");
  EXPECT_EQ(outputs[1].text, "b");
  EXPECT_EQ(Message(outputs[2].failure), "full");
  EXPECT_FALSE(outputs[0].last || outputs[1].last);
  EXPECT_TRUE(outputs[2].last);
  generation_->Cancel();
  EXPECT_EQ(cancels_, 1);
  EXPECT_EQ(ends_, 1);
  EXPECT_EQ(Ended("length"), 1);
  EXPECT_EQ(Ended("error"), 2);
}

TEST_F(ChoicesTest, AFailureOfBeforeTheCancellerIsThereCancelsToo) {
  request_.num_choices = 2;
  generation_ = std::make_shared<Generation>(request_, std::vector<int32_t>{'h'}, *tokenizer_,
                                             metrics_, listener_, Delivery::kWhole);
  EXPECT_TRUE(generation_->Open([this] { ++ends_; }));
  FailChoice(1, ResourceExhausted("full"));
  EXPECT_EQ(listener_->calls, 1);
  generation_->SetCanceller([this] { ++cancels_; });
  EXPECT_EQ(cancels_, 1);
}

TEST_F(ChoicesTest, AClientThatLeavesCancelsAll) {
  Start(4);
  Feed(2, {'a'}, wire::END_LENGTH);
  Feed(1, {'b'});
  generation_->Cancel();
  EXPECT_EQ(cancels_, 1);
  EXPECT_EQ(ends_, 1);
  EXPECT_TRUE(TakeAll().empty());
  for (int i = 0; i < 4; ++i) EXPECT_EQ(Feed(i, {'c'}), SinkAction::kStop);
  EXPECT_EQ(Ended("abort"), 3);
}

TEST_F(ChoicesTest, EachHasAStopStringAndACharacterOfItsOwn) {
  request_.stop = {"xy"};
  Start(2);
  Feed(0, {'a', 'x'});
  Feed(1, {0xc3});
  EXPECT_EQ(Feed(0, {'y'}), SinkAction::kStop);
  Feed(1, {0xa9, 'x', 'z'}, wire::END_LENGTH);
  const std::vector<Output> outputs = TakeAll();
  ASSERT_EQ(outputs.size(), 2u);
  EXPECT_EQ(outputs[0].text, "a");
  EXPECT_EQ(outputs[0].stop_string, "xy");
  EXPECT_EQ(outputs[1].text, "éxz");
  EXPECT_EQ(ends_, 1);
}

TEST_F(ChoicesTest, TheBestHaveTheHighestMeanLogprob) {
  request_.sampling.set_num_top_logprobs(0);
  Start(4, Delivery::kWhole);
  Feed(0, {30, 40}, wire::END_LENGTH);
  Feed(1, {36}, wire::END_LENGTH);  // the highest sum, but not for each token
  Feed(2, {33}, wire::END_NONE);
  Feed(2, {33, 33}, wire::END_LENGTH);
  Feed(3, {90}, wire::END_LENGTH);
  std::vector<Output> outputs = TakeAll();
  for (const Output& output : outputs) EXPECT_TRUE(output.logprobs.empty()) << "not asked for";
  KeepBest(3, &outputs);
  ASSERT_EQ(outputs.size(), 3u);
  EXPECT_EQ(outputs[0].text, "!!!");
  EXPECT_EQ(outputs[1].text, "\x1e(");
  EXPECT_EQ(outputs[2].text, "$");
  for (int i = 0; i < 3; ++i) EXPECT_EQ(outputs[i].choice, i);
}

// Choices on threads of their own, as after a move to other engines, and a reader on another one.
TEST_F(ChoicesTest, ThreadsRace) {
  constexpr int kChoices = 4, kTokens = 5000;
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  Start(kChoices);
  std::map<int, std::string> texts;
  int lasts = 0, tokens = 0;
  std::thread reader([&] {
    for (Output output; !output.last;) {
      if (!generation_->Take(&output)) continue;
      texts[output.choice] += output.text;
      EXPECT_GE(output.usage.completion_tokens, tokens);
      tokens = output.usage.completion_tokens;
      lasts += output.last;
    }
  });
  std::vector<std::thread> engines;
  engines.reserve(kChoices);
  for (int choice = 0; choice < kChoices; ++choice) {
    engines.emplace_back([&, choice] {
      std::mt19937 random(seed + choice);
      const char c = static_cast<char>('a' + choice);
      for (int left = kTokens; left > 0;) {
        const int count = std::min<int>(left, 1 + random() % 3);
        left -= count;
        Feed(choice, std::vector<int32_t>(count, c), left == 0 ? wire::END_LENGTH : wire::END_NONE);
      }
    });
  }
  for (std::thread& engine : engines) engine.join();
  reader.join();
  EXPECT_EQ(lasts, 1);
  EXPECT_EQ(tokens, kChoices * kTokens);
  for (int choice = 0; choice < kChoices; ++choice) {
    EXPECT_EQ(texts[choice], std::string(kTokens, static_cast<char>('a' + choice)));
  }
  EXPECT_EQ(ends_, 1);
}

}  // namespace
}  // namespace penstock::router
