#include "router/api/http/openai_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "router/request/validate.h"

namespace penstock::router {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;

absl::StatusOr<OpenAiRequest> Parse(ApiKind kind, const std::string& body) {
  ASSIGN_OR_RETURN(const Json json, ParseObject(body));
  return ParseOpenAi(kind, json);
}

constexpr ApiKind kCompletion = ApiKind::kCompletion;
constexpr ApiKind kChat = ApiKind::kChat;

TEST(ParseObject, RefusesWhatIsNoObject) {
  for (const std::string body : {"", "{", "[1]", "3", "{\"a\":}", "{} x", "nul", "{\"a\":NaN}",
                                 "{\"a\":\"\xff\"}", "{\"a\":\"\\ud800\"}", "\xef\xbb"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseObject(body).status())) << body;
  }
}

TEST(ParseObject, SurvivesDeepNesting) {
  const std::string deep = "{\"a\":" + std::string(200'000, '[') + std::string(200'000, ']') + "}";
  EXPECT_TRUE(ParseObject(deep).ok());
  EXPECT_FALSE(ParseObject(deep.substr(0, 200'000)).ok());
}

TEST(ParseOpenAi, Completion) {
  const auto request = Parse(kCompletion, R"({
    "model": "m", "prompt": "Hi", "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 40,
    "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": -1, "frequency_penalty": 1,
    "seed": -1, "stop": ["a", "b"], "stop_token_ids": [7], "logit_bias": {"3": -1.5},
    "ignore_eos": true, "include_stop_str_in_output": true, "skip_special_tokens": false,
    "min_tokens": 2, "logprobs": 3, "prompt_logprobs": 1, "n": 2, "best_of": 2, "echo": false,
    "suffix": null, "stream": true, "user": "u", "safety_identifier": "s", "unknown": {},
    "priority": 3, "timeout": 1.5, "cache_salt": "c", "skip_prefix_cache": true,
    "stream_options": {"include_usage": true, "continuous_usage_stats": true}})");
  ASSERT_TRUE(request.ok()) << request.status();
  const RequestFields& fields = request->fields;
  EXPECT_EQ(fields.model, "m");
  EXPECT_EQ(std::get<std::string>(fields.prompt), "Hi");
  EXPECT_EQ(fields.max_tokens, 5);
  EXPECT_EQ(fields.temperature, 0.5);
  EXPECT_EQ(fields.top_k, 40);
  EXPECT_EQ(fields.seed, UINT64_MAX);
  EXPECT_THAT(fields.stop, ElementsAre("a", "b"));
  EXPECT_THAT(fields.stop_token_ids, ElementsAre(7));
  EXPECT_THAT(fields.logit_bias, ElementsAre(Pair(3, -1.5)));
  EXPECT_TRUE(fields.ignore_eos);
  EXPECT_TRUE(fields.include_stop);
  EXPECT_FALSE(fields.skip_special_tokens);
  EXPECT_EQ(fields.logprobs, 3);
  EXPECT_EQ(fields.prompt_logprobs, 1);
  EXPECT_EQ(fields.n, 2);
  EXPECT_EQ(fields.best_of, 2);
  EXPECT_EQ(fields.priority, 3);
  EXPECT_EQ(fields.timeout, 1.5);
  EXPECT_EQ(fields.tenant, "u");
  EXPECT_EQ(fields.cache_salt, "c");
  EXPECT_TRUE(fields.skip_prefix_cache);
  EXPECT_TRUE(request->stream);
  EXPECT_TRUE(request->include_usage);
  EXPECT_TRUE(request->continuous_usage);
}

TEST(ParseOpenAi, PromptForms) {
  const auto ids = [](const std::string& prompt) {
    const auto request = Parse(kCompletion, "{\"prompt\":" + prompt + "}");
    EXPECT_TRUE(request.ok()) << request.status();
    return std::get<TokenPrompt>(request->fields.prompt);
  };
  EXPECT_THAT(ids("[1, 2]"), ElementsAre(1, 2));
  EXPECT_THAT(ids("[[1, 2]]"), ElementsAre(1, 2));
  EXPECT_THAT(ids("[]"), ElementsAre());
  EXPECT_THAT(ids("[-1, 18446744073709551615]"), ElementsAre(-1, INT64_MAX));  // refused later
  const auto list = Parse(kCompletion, R"({"prompt":["one"]})");
  EXPECT_EQ(std::get<std::string>(list->fields.prompt), "one");
  const auto two = Parse(kCompletion, R"({"prompt":["one","two"]})");
  EXPECT_THAT(Message(two.status()), HasSubstr("2 prompts"));
  for (const char* bad : {"3", "true", "{}", "[1,\"a\"]", "[1.5]", "[null]", "[1e99]"}) {
    const auto request = Parse(kCompletion, fmt::format("{{\"prompt\":{}}}", bad));
    EXPECT_EQ(FieldOf(request.status()), "prompt") << bad;
  }
}

TEST(ParseOpenAi, Chat) {
  const auto request = Parse(kChat, R"({"messages": [
      {"role": "system", "content": "Be brief."},
      {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
      {"role": "assistant", "content": null}],
    "max_tokens": 3, "max_completion_tokens": 9, "logprobs": true, "top_logprobs": 2,
    "safety_identifier": "s", "tools": [], "tool_choice": "none", "response_format": {"type": "text"}})");
  ASSERT_TRUE(request.ok()) << request.status();
  const auto& turns = std::get<ChatPrompt>(request->fields.prompt);
  ASSERT_EQ(turns.size(), 3u);
  EXPECT_EQ(turns[0].role, "system");
  EXPECT_EQ(turns[1].content, "a\nb");
  EXPECT_EQ(turns[2].content, "");
  EXPECT_EQ(request->fields.tenant, "s");
  EXPECT_EQ(request->fields.max_tokens, 9);
  EXPECT_EQ(request->fields.logprobs, 2);
}

struct BadBody {
  std::string name;
  ApiKind kind;
  std::string body;
  std::string field;
};

class BadBodies : public testing::TestWithParam<BadBody> {};

TEST_P(BadBodies, AreRefusedByField) {
  const absl::Status status = Parse(GetParam().kind, GetParam().body).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_EQ(FieldOf(status), GetParam().field) << status;
}

std::string Chat(const std::string& more) {
  return R"({"messages":[{"role":"user","content":"x"}],)" + more + "}";
}

INSTANTIATE_TEST_SUITE_P(
    All, BadBodies,
    testing::Values(
        BadBody{"ModelNumber", kCompletion, R"({"model":1})", "model"},
        BadBody{"TemperatureString", kCompletion, R"({"temperature":"hot"})", "temperature"},
        BadBody{"MaxTokensFraction", kCompletion, R"({"max_tokens":1.5})", "max_tokens"},
        BadBody{"MaxTokensString", kCompletion, R"({"max_tokens":"5"})", "max_tokens"},
        BadBody{"StreamNumber", kCompletion, R"({"stream":1})", "stream"},
        BadBody{"StopObject", kCompletion, R"({"stop":{}})", "stop"},
        BadBody{"StopNumbers", kCompletion, R"({"stop":[1]})", "stop"},
        BadBody{"BiasArray", kCompletion, R"({"logit_bias":[]})", "logit_bias"},
        BadBody{"BiasKey", kCompletion, R"({"logit_bias":{"x":1}})", "logit_bias"},
        BadBody{"BiasText", kCompletion, R"({"logit_bias":{"1":"2"}})", "logit_bias"},
        BadBody{"SeedText", kCompletion, R"({"seed":"x"})", "seed"},
        BadBody{"SeedFraction", kCompletion, R"({"seed":1.5})", "seed"},
        BadBody{"Suffix", kCompletion, R"({"suffix":"end"})", "suffix"},
        BadBody{"BestOfOfAStream", kCompletion, R"({"n":2,"best_of":3,"stream":true})", "best_of"},
        BadBody{"BestOfOfAChat", kChat, Chat(R"("best_of":2)"), "best_of"},
        BadBody{"TimeoutText", kCompletion, R"({"timeout":"5"})", "timeout"},
        BadBody{"UserNumber", kChat, Chat(R"("user":5)"), "user"},
        BadBody{"StreamOptions", kCompletion, R"({"stream_options":{"include_usage":true}})",
                "stream_options"},
        BadBody{"StreamOptionsType", kCompletion,
                R"({"stream":true,"stream_options":{"include_usage":1}})", "stream_options"},
        BadBody{"NoMessages", kChat, "{}", "messages"},
        BadBody{"MessagesText", kChat, R"({"messages":"hi"})", "messages"},
        BadBody{"MessageText", kChat, R"({"messages":["hi"]})", "messages"},
        BadBody{"NoRole", kChat, R"({"messages":[{"content":"x"}]})", "messages[0].role"},
        BadBody{"RoleNumber", kChat, R"({"messages":[{"role":1}]})", "messages[0].role"},
        BadBody{"ContentNumber", kChat, R"({"messages":[{"role":"user","content":1}]})",
                "messages[0].content"},
        BadBody{"Image", kChat,
                R"({"messages":[{"role":"user","content":[{"type":"image_url"}]}]})",
                "messages[0].content"},
        BadBody{"JsonFormat", kChat, Chat(R"("response_format":{"type":"json_object"})"),
                "response_format"},
        BadBody{"Tools", kChat, Chat(R"("tools":[{"type":"function"}])"), "tools"},
        BadBody{"LogprobsNumber", kChat, Chat(R"("logprobs":5)"), "logprobs"},
        BadBody{"TopLogprobs", kChat, Chat(R"("top_logprobs":5)"), "top_logprobs"}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace penstock::router
