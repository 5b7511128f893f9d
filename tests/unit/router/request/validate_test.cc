#include "router/request/validate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <set>
#include <string>
#include <utility>

namespace penstock::router {
namespace {

using testing::HasSubstr;

const ModelLimits kLimits = {.names = {"smol", "alias"}, .vocab_size = 100, .max_model_len = 64};

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();
using F = RequestFields;

RequestFields Sound() {
  RequestFields fields;
  fields.prompt = "Hello";
  return fields;
}

TEST(Validate, FillsDefaults) {
  const auto request = Validate(Sound(), kLimits);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->model, "smol");
  EXPECT_EQ(request->sampling.temperature(), 1);
  EXPECT_EQ(request->sampling.top_p(), 1);
  EXPECT_EQ(request->sampling.top_k(), 0);
  EXPECT_EQ(request->sampling.repetition_penalty(), 1);
  EXPECT_EQ(request->sampling.num_top_logprobs(), -1);
  EXPECT_EQ(request->sampling.num_prompt_logprobs(), -1);
  EXPECT_FALSE(request->has_seed);
  EXPECT_TRUE(request->return_text);
}

TEST(Validate, KeepsWhatIsGiven) {
  RequestFields fields = Sound();
  fields.model = "alias";
  fields.temperature = 0;
  fields.top_k = -1;
  fields.seed = 42;
  fields.max_tokens = 7;
  fields.logprobs = 0;
  fields.stop_token_ids = {5};
  fields.logit_bias = {{3, -100}, {4, 100}};
  const auto request = Validate(fields, kLimits);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->model, "alias");
  EXPECT_EQ(request->sampling.temperature(), 0);
  EXPECT_EQ(request->sampling.top_k(), 0);
  EXPECT_EQ(request->sampling.seed(), 42u);
  EXPECT_TRUE(request->has_seed);
  EXPECT_EQ(request->sampling.max_tokens(), 7);
  EXPECT_EQ(request->sampling.num_top_logprobs(), 0);
  EXPECT_THAT(request->sampling.stop_ids(), testing::ElementsAre(5));
  EXPECT_THAT(request->sampling.bias_ids(), testing::ElementsAre(3, 4));
}

TEST(Validate, ChoicesAndWhatTheyAreChosenBy) {
  const auto choices = [](std::optional<int64_t> n, std::optional<int64_t> best_of) {
    RequestFields fields = Sound();
    fields.n = n;
    fields.best_of = best_of;
    return *Validate(fields, kLimits);
  };
  EXPECT_EQ(choices({}, {}).n, 1);
  EXPECT_EQ(choices({}, {}).num_choices, 1);
  EXPECT_EQ(choices(128, {}).num_choices, 128);
  EXPECT_EQ(choices(2, 2).sampling.num_top_logprobs(), -1);
  const GenerationRequest best = choices(2, 5);
  EXPECT_EQ(best.n, 2);
  EXPECT_EQ(best.num_choices, 5);
  EXPECT_EQ(best.sampling.num_top_logprobs(), 0) << "they are ranked by log-probabilities";
  EXPECT_FALSE(best.return_logprobs) << "which the client has not asked for";
}

TEST(Validate, TheSoonestDeadlineCounts) {
  using std::chrono::milliseconds;
  const RequestFields::Clock::time_point arrival{std::chrono::hours(100)};
  const auto left = [&](auto ask) {
    RequestFields fields = Sound();
    fields.arrival = arrival;
    ask(fields);
    return Validate(fields, kLimits)->deadline.value_or(arrival + std::chrono::hours(999)) -
           arrival;
  };
  EXPECT_EQ(left([](F&) {}), std::chrono::hours(999));
  EXPECT_EQ(left([](F& f) { f.timeout = 2.5; }), milliseconds(2500));
  EXPECT_EQ(left([](F& f) { f.timeout_ms = 1; }), milliseconds(1));
  EXPECT_GT(left([](F& f) { f.timeout = 1e-300; }), milliseconds(0));
  EXPECT_GT(left([](F& f) { f.timeout = kInf; }), std::chrono::hours(24 * 365));
  EXPECT_GT(left([](F& f) { f.timeout_ms = INT64_MAX; }), std::chrono::hours(24 * 365));
  const auto both = [&](int call_ms, int timeout_ms) {
    return left([&](F& f) {
      f.deadline = arrival + milliseconds(call_ms);
      f.timeout_ms = timeout_ms;
    });
  };
  EXPECT_EQ(both(100, 200), milliseconds(100));
  EXPECT_EQ(both(300, 200), milliseconds(200));
}

TEST(ChoiceSeed, FirstIsTheRequestsAndAllDiffer) {
  std::set<uint64_t> seeds;
  for (const uint64_t seed : {uint64_t{0}, uint64_t{1}, UINT64_MAX}) {
    EXPECT_EQ(ChoiceSeed(seed, 0), seed);
    for (int i = 0; i < kMaxChoices; ++i) seeds.insert(ChoiceSeed(seed, i));
  }
  EXPECT_EQ(seeds.size(), 3u * kMaxChoices);
  EXPECT_EQ(ChoiceSeed(42, 1), ChoiceSeed(42, 1));
  EXPECT_EQ(ChoiceSeed(0, 1), 0xe220a8397b1dcdafu) << "SplitMix64's first: texts must not change";
}

// Limits of a model that suggests how to sample.
ModelLimits WithDefaults() {
  ModelLimits limits = kLimits;
  limits.defaults = {.temperature = 0.5,
                     .top_p = 0.75,
                     .min_p = 0.25,
                     .repetition_penalty = 1.5,
                     .top_k = 20,
                     .max_new_tokens = 8};
  return limits;
}

TEST(Validate, TheModelsDefaultsFillWhatIsLeftOut) {
  const auto request = Validate(Sound(), WithDefaults());
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->sampling.temperature(), 0.5);
  EXPECT_EQ(request->sampling.top_p(), 0.75);
  EXPECT_EQ(request->sampling.min_p(), 0.25);
  EXPECT_EQ(request->sampling.repetition_penalty(), 1.5);
  EXPECT_EQ(request->sampling.top_k(), 20);
  EXPECT_EQ(request->sampling.presence_penalty(), 0);
}

TEST(Validate, WhatIsGivenGoesBeforeTheModelsDefaults) {
  RequestFields fields = Sound();
  fields.temperature = 1;
  fields.top_p = 1;
  fields.min_p = 0;
  fields.repetition_penalty = 1;
  fields.top_k = 0;
  const auto request = Validate(fields, WithDefaults());
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->sampling.temperature(), 1);
  EXPECT_EQ(request->sampling.top_p(), 1);
  EXPECT_EQ(request->sampling.min_p(), 0);
  EXPECT_EQ(request->sampling.repetition_penalty(), 1);
  EXPECT_EQ(request->sampling.top_k(), 0);
}

TEST(CheckDefaults, TakesWhatRequestsMayAskFor) {
  EXPECT_TRUE(CheckDefaults({}).ok());
  EXPECT_TRUE(CheckDefaults(WithDefaults().defaults).ok());
}

TEST(CheckDefaults, NamesWhatIsOutOfRange) {
  const std::pair<const char*, SamplingDefaults> wrong[] = {
      {"temperature is -1", {.temperature = -1}},
      {"top_p is 1.5", {.top_p = 1.5}},
      {"min_p is 2", {.min_p = 2}},
      {"repetition_penalty is 0", {.repetition_penalty = 0}},
      {"top_k is -2", {.top_k = -2}},
      {"max_new_tokens is 0", {.max_new_tokens = 0}}};
  for (const auto& [says, defaults] : wrong) {
    const absl::Status status = CheckDefaults(defaults);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << says;
    EXPECT_THAT(Message(status), HasSubstr(says));
  }
}

TEST(Validate, UnknownModel) {
  RequestFields fields = Sound();
  fields.model = "gpt-5";
  const absl::Status status = Validate(fields, kLimits).status();
  EXPECT_TRUE(absl::IsNotFound(status));
  EXPECT_EQ(FieldOf(status), "model");
  EXPECT_THAT(Message(status), HasSubstr("\"smol\", \"alias\""));
}

struct BadCase {
  std::string name;
  std::string field;
  std::string says;  // part of the message
  std::function<void(RequestFields&)> spoil;
};

class BadFields : public testing::TestWithParam<BadCase> {};

TEST_P(BadFields, IsRefusedByName) {
  RequestFields fields = Sound();
  GetParam().spoil(fields);
  const absl::Status status = Validate(fields, kLimits).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_EQ(FieldOf(status), GetParam().field);
  EXPECT_THAT(Message(status), HasSubstr(GetParam().says));
}

INSTANTIATE_TEST_SUITE_P(
    All, BadFields,
    testing::Values(
        BadCase{"TemperatureNan", "temperature", "nan", [](F& f) { f.temperature = kNan; }},
        BadCase{"TemperatureNegative", "temperature", "-0.1", [](F& f) { f.temperature = -0.1; }},
        BadCase{"TemperatureInfinite", "temperature", "inf", [](F& f) { f.temperature = kInf; }},
        BadCase{"TopPZero", "top_p", "above 0", [](F& f) { f.top_p = 0; }},
        BadCase{"TopPAboveOne", "top_p", "1.5", [](F& f) { f.top_p = 1.5; }},
        BadCase{"MinPNegative", "min_p", "0 to 1", [](F& f) { f.min_p = -1; }},
        BadCase{"TopKBelow", "top_k", "-2", [](F& f) { f.top_k = -2; }},
        BadCase{"TopKHuge", "top_k", "3000000000", [](F& f) { f.top_k = 3'000'000'000; }},
        BadCase{"Repetition", "repetition_penalty", "0", [](F& f) { f.repetition_penalty = 0; }},
        BadCase{"Presence", "presence_penalty", "2.5", [](F& f) { f.presence_penalty = 2.5; }},
        BadCase{"Frequency", "frequency_penalty", "nan", [](F& f) { f.frequency_penalty = kNan; }},
        BadCase{"MaxTokensZero", "max_tokens", "max_tokens is 0", [](F& f) { f.max_tokens = 0; }},
        BadCase{"MaxTokensNegative", "max_tokens", "-1", [](F& f) { f.max_tokens = -1; }},
        BadCase{"MinTokens", "min_tokens", "-1", [](F& f) { f.min_tokens = -1; }},
        BadCase{"MinAboveMax", "min_tokens", "more than max_tokens",
                [](F& f) {
                  f.min_tokens = 5;
                  f.max_tokens = 4;
                }},
        BadCase{"NZero", "n", "n is 0: give an integer from 1 to 128", [](F& f) { f.n = 0; }},
        BadCase{"NTooLarge", "n", "129", [](F& f) { f.n = 129; }},
        BadCase{"BestOfBelowN", "best_of", "from n, 3, to 128",
                [](F& f) {
                  f.n = 3;
                  f.best_of = 2;
                }},
        BadCase{"BestOfTooLarge", "best_of", "129", [](F& f) { f.best_of = 129; }},
        BadCase{"PriorityNegative", "priority", "0 (goes first) to 9",
                [](F& f) { f.priority = -1; }},
        BadCase{"PriorityTooLarge", "priority", "10", [](F& f) { f.priority = 10; }},
        BadCase{"TimeoutZero", "timeout", "a positive number of seconds",
                [](F& f) { f.timeout = 0; }},
        BadCase{"TimeoutNegative", "timeout", "-1.5", [](F& f) { f.timeout = -1.5; }},
        BadCase{"TimeoutNan", "timeout", "nan", [](F& f) { f.timeout = kNan; }},
        BadCase{"TimeoutMsZero", "timeout_ms", "milliseconds", [](F& f) { f.timeout_ms = 0; }},
        BadCase{"TimeoutMsNegative", "timeout_ms", "-5", [](F& f) { f.timeout_ms = -5; }},
        BadCase{"TenantLong", "user", "257 bytes", [](F& f) { f.tenant = std::string(257, 'x'); }},
        BadCase{"SaltLong", "cache_salt", "257",
                [](F& f) { f.cache_salt = std::string(257, 'x'); }},
        BadCase{"RequestIdLong", "request_id", "257",
                [](F& f) { f.request_id = std::string(257, 'x'); }},
        BadCase{"Logprobs", "logprobs", "21", [](F& f) { f.logprobs = 21; }},
        BadCase{"PromptLogprobs", "prompt_logprobs", "-1", [](F& f) { f.prompt_logprobs = -1; }},
        BadCase{"StopEmpty", "stop", "empty", [](F& f) { f.stop = {""}; }},
        BadCase{"StopMany", "stop", "17", [](F& f) { f.stop.assign(17, "x"); }},
        BadCase{"StopLong", "stop", "1025", [](F& f) { f.stop = {std::string(1025, 'x')}; }},
        BadCase{"StopId", "stop_token_ids", "100", [](F& f) { f.stop_token_ids = {100}; }},
        BadCase{"BiasId", "logit_bias", "0 to 99",
                [](F& f) {
                  f.logit_bias = {{-1, 0}};
                }},
        BadCase{"BiasValue", "logit_bias", "101", [](F& f) { f.logit_bias = {{1, 101}}; }},
        BadCase{"PromptEmpty", "prompt", "empty", [](F& f) { f.prompt = ""; }},
        BadCase{"PromptMissing", "prompt", "missing", [](F& f) { f.prompt = NoPrompt{}; }},
        BadCase{"PromptNoIds", "prompt", "empty", [](F& f) { f.prompt = TokenPrompt{}; }},
        BadCase{"PromptBadId", "prompt", "100", [](F& f) { f.prompt = TokenPrompt{1, 100}; }},
        BadCase{"NoMessages", "messages", "empty", [](F& f) { f.prompt = ChatPrompt{}; }},
        BadCase{"EmptyRole", "messages", "role", [](F& f) { f.prompt = ChatPrompt{{"", "x"}}; }}),
    [](const auto& info) { return info.param.name; });

TEST(FitToContext, SettlesMaxTokens) {
  GenerationRequest request = *Validate(Sound(), kLimits);
  ASSERT_TRUE(FitToContext(10, kLimits, &request).ok());
  EXPECT_EQ(request.sampling.max_tokens(), 54);
}

TEST(FitToContext, TheModelMaySuggestLess) {
  const ModelLimits limits = WithDefaults();
  const auto settled = [&](int64_t prompt_len, auto ask) {
    RequestFields fields = Sound();
    ask(fields);
    GenerationRequest request = *Validate(fields, limits);
    EXPECT_TRUE(FitToContext(prompt_len, limits, &request).ok());
    return request.sampling.max_tokens();
  };
  const auto nothing = [](RequestFields&) {};
  EXPECT_EQ(settled(10, nothing), 8);
  EXPECT_EQ(settled(60, nothing), 4) << "the context holds no more";
  EXPECT_EQ(settled(10, [](RequestFields& f) { f.max_tokens = 30; }), 30);
  EXPECT_EQ(settled(10, [](RequestFields& f) { f.min_tokens = 12; }), 12);
}

TEST(FitToContext, PromptFillsTheContext) {
  GenerationRequest request = *Validate(Sound(), kLimits);
  EXPECT_TRUE(FitToContext(63, kLimits, &request).ok());
  request = *Validate(Sound(), kLimits);
  const absl::Status status = FitToContext(64, kLimits, &request);
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_EQ(FieldOf(status), "prompt");
  EXPECT_THAT(Message(status), HasSubstr("64 tokens"));
}

TEST(FitToContext, MaxTokensMustFit) {
  RequestFields fields = Sound();
  fields.max_tokens = 55;
  GenerationRequest request = *Validate(fields, kLimits);
  EXPECT_TRUE(FitToContext(9, kLimits, &request).ok());
  const absl::Status status = FitToContext(10, kLimits, &request);
  EXPECT_EQ(FieldOf(status), "max_tokens");
  EXPECT_THAT(Message(status), HasSubstr("at most 54"));
}

}  // namespace
}  // namespace penstock::router
