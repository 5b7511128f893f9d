#include "router/api/http/openai_response.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "router/api/http/json_text.h"
#include "router/request/validate.h"
#include "tests/unit/router/test_models.h"

namespace penstock::router {
namespace {

class OpenAiWriterTest : public testing::Test {
 protected:
  OpenAiWriter Writer(ApiKind kind) {
    facts_.kind = kind;
    facts_.id = "id-1";
    facts_.model = "m \"x\"";
    facts_.created = 123;
    facts_.prompt_tokens = 4;
    return OpenAiWriter(*tokenizer_, facts_);
  }
  // The JSON of the one event in `text`.
  static Json Event(const std::string& text) {
    EXPECT_EQ(text.rfind("data: ", 0), 0u);
    EXPECT_EQ(text.substr(text.size() - 2), "\n\n");
    EXPECT_EQ(text.find('\n'), text.size() - 2);
    return Json::parse(text.substr(6));
  }

  const std::unique_ptr<Tokenizer> tokenizer_ = MakeTinyTokenizer();
  ResponseFacts facts_;
};

Output Text(const std::string& text) {
  Output output;
  output.text = text;
  output.usage.completion_tokens = 1;
  return output;
}

TEST(JsonText, EscapesAsJsonWants) {
  std::string all;
  for (int c = 0; c < 128; ++c) all += static_cast<char>(c);
  for (const std::string& text :
       {all, std::string(), std::string("é漢😀\"\\\n\r\t\x1f"), std::string("\x00x", 2)}) {
    EXPECT_EQ(Json::parse(JsonString(text)).get<std::string>(), text);
  }
}

TEST_F(OpenAiWriterTest, ChatChunks) {
  OpenAiWriter writer = Writer(ApiKind::kChat);
  std::string text;
  writer.AppendChunk(Text("Hel\"lo\n"), &text);
  Json chunk = Event(text);
  EXPECT_EQ(chunk["id"], "id-1");
  EXPECT_EQ(chunk["object"], "chat.completion.chunk");
  EXPECT_EQ(chunk["created"], 123);
  EXPECT_EQ(chunk["model"], "m \"x\"");
  EXPECT_EQ(chunk["choices"][0]["delta"], Json({{"role", "assistant"}, {"content", "Hel\"lo\n"}}));
  EXPECT_TRUE(chunk["choices"][0]["finish_reason"].is_null());
  EXPECT_FALSE(chunk.contains("usage"));

  text.clear();
  Output last = Text("!");
  last.finish = Finish::kStop;
  last.usage = {.completion_tokens = 2, .cached_tokens = 3};
  writer.AppendChunk(last, &text);
  chunk = Event(text);
  EXPECT_EQ(chunk["choices"][0]["delta"], Json({{"content", "!"}}));
  EXPECT_EQ(chunk["choices"][0]["finish_reason"], "stop");
  EXPECT_TRUE(chunk["choices"][0]["stop_reason"].is_null());

  text.clear();
  writer.AppendUsageChunk(last.usage, &text);
  chunk = Event(text);
  EXPECT_TRUE(chunk["choices"].empty());
  EXPECT_EQ(chunk["usage"]["prompt_tokens"], 4);
  EXPECT_EQ(chunk["usage"]["completion_tokens"], 2);
  EXPECT_EQ(chunk["usage"]["total_tokens"], 6);
  EXPECT_EQ(chunk["usage"]["prompt_tokens_details"]["cached_tokens"], 3);
}

TEST_F(OpenAiWriterTest, CompletionChunksWithUsage) {
  facts_.continuous_usage = true;
  OpenAiWriter writer = Writer(ApiKind::kCompletion);
  std::string text;
  Output output = Text("a");
  output.finish = Finish::kLength;
  writer.AppendChunk(output, &text);
  const Json chunk = Event(text);
  EXPECT_EQ(chunk["object"], "text_completion");
  EXPECT_EQ(chunk["choices"][0]["text"], "a");
  EXPECT_EQ(chunk["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(chunk["usage"]["total_tokens"], 5);
}

TEST_F(OpenAiWriterTest, ChunksOfSeveralChoices) {
  facts_.n = 2;
  facts_.logprobs = true;
  facts_.echo = true;
  facts_.prompt_text = "he";
  facts_.prompt_ids = {256};
  OpenAiWriter completion = Writer(ApiKind::kCompletion);
  facts_.echo = false;
  OpenAiWriter chat = Writer(ApiKind::kChat);
  const std::pair<int, const char*> order[] = {{1, "ll"}, {0, "o"}, {1, "!"}};
  std::set<int> begun;
  for (const auto& [choice, delta] : order) {
    Output output = Text(delta);
    output.choice = choice;
    output.logprobs = {{257, -1, 1, {}}};
    const bool first = begun.insert(choice).second;
    std::string text;
    completion.AppendChunk(output, &text);
    Json json = Event(text)["choices"][0];
    EXPECT_EQ(json["index"], choice);
    EXPECT_EQ(json["text"], first ? std::string("he") + delta : delta);
    EXPECT_EQ(json["logprobs"]["text_offset"], first ? Json({0, 2}) : Json({4}));
    text.clear();
    chat.AppendChunk(output, &text);
    json = Event(text)["choices"][0];
    EXPECT_EQ(json["index"], choice);
    EXPECT_EQ(json["delta"].contains("role"), first);
  }
}

TEST_F(OpenAiWriterTest, BodyOfSeveralChoices) {
  facts_.n = 2;
  Output a = Text("a"), b = Text("b");
  b.choice = 1;
  a.finish = Finish::kStop;
  b.finish = Finish::kLength;
  const Json body = Json::parse(Writer(ApiKind::kChat).Body({a, b}, {.completion_tokens = 7}));
  ASSERT_EQ(body["choices"].size(), 2u);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(body["choices"][i]["index"], i);
    EXPECT_EQ(body["choices"][i]["message"]["role"], "assistant");
    EXPECT_EQ(body["choices"][i]["message"]["content"], i == 0 ? "a" : "b");
    EXPECT_EQ(body["choices"][i]["finish_reason"], i == 0 ? "stop" : "length");
  }
  EXPECT_EQ(body["usage"]["prompt_tokens"], 4);
  EXPECT_EQ(body["usage"]["completion_tokens"], 7);
}

TEST_F(OpenAiWriterTest, StopReasons) {
  Output output = Text("");
  output.finish = Finish::kStop;
  output.stop_string = "\"end\"";
  Json body = Json::parse(Writer(ApiKind::kCompletion).Body({output}, output.usage));
  EXPECT_EQ(body["choices"][0]["stop_reason"], "\"end\"");
  output.stop_token_id = 7;
  body = Json::parse(Writer(ApiKind::kCompletion).Body({output}, output.usage));
  EXPECT_EQ(body["choices"][0]["stop_reason"], 7);
}

TEST_F(OpenAiWriterTest, ChatBodyWithLogprobs) {
  facts_.logprobs = true;
  Output output = Text("he\xEF\xBF\xBD");
  output.finish = Finish::kLength;
  output.logprobs = {{256, -0.5f, 1, {{256, -0.5f}, {257, -1.5f}}}, {0xff, -INFINITY, 9, {}}};
  const Json body = Json::parse(Writer(ApiKind::kChat).Body({output}, output.usage));
  EXPECT_EQ(body["object"], "chat.completion");
  const Json& choice = body["choices"][0];
  EXPECT_EQ(choice["message"]["role"], "assistant");
  EXPECT_EQ(choice["message"]["content"], "he\xEF\xBF\xBD");
  const Json& content = choice["logprobs"]["content"];
  ASSERT_EQ(content.size(), 2u);
  EXPECT_EQ(content[0]["token"], "he");
  EXPECT_EQ(content[0]["logprob"], -0.5);
  EXPECT_EQ(content[0]["bytes"], Json({104, 101}));
  EXPECT_EQ(content[0]["top_logprobs"][1]["token"], "ll");
  EXPECT_EQ(content[1]["token"], "\xEF\xBF\xBD");  // half a character
  EXPECT_EQ(content[1]["bytes"], Json({255}));
  EXPECT_EQ(content[1]["logprob"], -9999.0);
}

TEST_F(OpenAiWriterTest, CompletionLogprobsWithEcho) {
  facts_.logprobs = true;
  facts_.echo = true;
  facts_.prompt_text = "hell";
  facts_.prompt_ids = {256, 257};
  Output output = Text("o");
  output.finish = Finish::kLength;
  output.prompt_logprobs = {{257, -2, 3, {{257, -2}}}};
  output.logprobs = {{'o', -1, 1, {}}};
  const Json choice =
      Json::parse(Writer(ApiKind::kCompletion).Body({output}, output.usage))["choices"][0];
  EXPECT_EQ(choice["text"], "hello");
  EXPECT_EQ(choice["logprobs"]["tokens"], Json({"he", "ll", "o"}));
  EXPECT_EQ(choice["logprobs"]["token_logprobs"], Json({nullptr, -2.0, -1.0}));
  EXPECT_EQ(choice["logprobs"]["text_offset"], Json({0, 2, 4}));
  EXPECT_TRUE(choice["logprobs"]["top_logprobs"][0].is_null());
  EXPECT_EQ(choice["logprobs"]["top_logprobs"][1]["ll"], -2.0);
  EXPECT_FALSE(choice.contains("prompt_logprobs"));
}

TEST_F(OpenAiWriterTest, PromptLogprobs) {
  Output output = Text("x");
  output.finish = Finish::kLength;
  output.prompt_logprobs = {{257, -2, 3, {{256, -1}}}};
  const Json choice =
      Json::parse(Writer(ApiKind::kCompletion).Body({output}, output.usage))["choices"][0];
  EXPECT_TRUE(choice["prompt_logprobs"][0].is_null());
  EXPECT_EQ(choice["prompt_logprobs"][1]["257"]["rank"], 3);
  EXPECT_EQ(choice["prompt_logprobs"][1]["256"]["rank"], 1);
  EXPECT_EQ(choice["prompt_logprobs"][1]["256"]["decoded_token"], "he");
}

TEST(Errors, HaveOpenAiShapeAndStatus) {
  const absl::Status bad = FieldError("top_p", "top_p is \"x\"");
  EXPECT_EQ(HttpStatusOf(bad), 400);
  const Json body = Json::parse(ErrorBody(bad));
  EXPECT_EQ(body["error"]["message"], "top_p is \"x\"");
  EXPECT_EQ(body["error"]["type"], "invalid_request_error");
  EXPECT_EQ(body["error"]["param"], "top_p");
  EXPECT_TRUE(body["error"]["code"].is_null());
  const Json broken = Json::parse(ErrorBody(absl::InternalError("\xff")));
  EXPECT_EQ(broken["error"]["message"], "\xEF\xBF\xBD");
  EXPECT_EQ(HttpStatusOf(absl::NotFoundError("")), 404);
  EXPECT_EQ(HttpStatusOf(absl::UnauthenticatedError("")), 401);
  EXPECT_EQ(HttpStatusOf(absl::ResourceExhaustedError("")), 429);
  EXPECT_EQ(HttpStatusOf(absl::UnavailableError("")), 503);
  EXPECT_EQ(HttpStatusOf(absl::DeadlineExceededError("")), 504);
  EXPECT_EQ(Json::parse(ErrorBody(absl::DeadlineExceededError("")))["error"]["type"],
            "timeout_error");
  EXPECT_EQ(HttpStatusOf(absl::InternalError("")), 500);
}

}  // namespace
}  // namespace penstock::router
