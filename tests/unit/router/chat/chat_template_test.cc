#include "router/chat/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "tests/unit/router/test_models.h"

namespace penstock::router {
namespace {

using Json = ChatTemplate::Json;
using ::testing::HasSubstr;

const Json kHello = Json::parse(R"([{"role": "user", "content": "Hello"}])");

std::unique_ptr<ChatTemplate> Make(const std::string& source,
                                   const ChatTemplateLimits& limits = {}) {
  auto chat = ChatTemplate::Create({{"default", source}}, Json::object(), limits);
  EXPECT_TRUE(chat.ok()) << chat.status();
  return chat.ok() ? *std::move(chat) : nullptr;
}

absl::StatusOr<std::string> RenderHello(const std::string& source,
                                        const ChatTemplateLimits& limits = {}) {
  const auto chat = Make(source, limits);
  if (chat == nullptr) return absl::InternalError("not compiled");
  return chat->Render(kHello, nullptr, true, nullptr);
}

void ExpectRefused(const absl::StatusOr<std::string>& text, const std::string& reason) {
  ASSERT_FALSE(text.ok()) << *text;
  EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(text.status().message()), HasSubstr(reason));
}

TEST(ChatTemplateTest, KeepsTheOrderOfKeys) {
  const auto chat = Make("{{ tools | tojson }}");
  const Json tools = Json::parse(R"([{"z": 1, "a": {"y": "é<", "b": null}}])");
  EXPECT_EQ(*chat->Render(kHello, tools, true, nullptr),
            R"([{"z": 1, "a": {"y": "é<", "b": null}}])");
}

TEST(ChatTemplateTest, KwargsGoBeforeSpecialTokens) {
  auto chat = ChatTemplate::Create({{"default", "{{ bos_token }}{{ eos_token }}{{ x }}"}},
                                   {{"bos_token", "<s>"}, {"eos_token", "</s>"}});
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_EQ(*(*chat)->Render(kHello, nullptr, true, nullptr), "<s></s>");
  EXPECT_EQ(*(*chat)->Render(kHello, nullptr, true, {{"bos_token", "B"}, {"x", 1}}), "B</s>1");
}

TEST(ChatTemplateTest, ToolUseTemplateServesCallsWithTools) {
  auto chat = ChatTemplate::Create({{"default", "plain"}, {"tool_use", "tools"}}, Json::object());
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_EQ(*(*chat)->Render(kHello, nullptr, true, nullptr), "plain");
  EXPECT_EQ(*(*chat)->Render(kHello, Json::array(), true, nullptr), "tools");
}

TEST(ChatTemplateTest, ReadsItsGguf) {
  GgufBuilder builder = TinyVocabulary().Builder();
  builder.Str("tokenizer.chat_template", "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}")
      .U32("tokenizer.ggml.bos_token_id", 262)
      .U32("tokenizer.ggml.eos_token_id", 261);
  const auto file = OpenBuilt(builder);
  ASSERT_TRUE(file.ok()) << file.status();
  const auto chat = ChatTemplate::FromGguf(**file);
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_EQ(*(*chat)->Render(kHello, nullptr, true, nullptr), "<|start|>|<|end|>|");
}

TEST(ChatTemplateTest, AbsentAndInvalidTemplates) {
  const auto none = ChatTemplate::FromGguf(**OpenBuilt(TinyVocabulary().Builder()));
  EXPECT_EQ(none.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(none.status().message()), HasSubstr("no chat template"));
  GgufBuilder builder = TinyVocabulary().Builder();
  builder.Str("tokenizer.chat_template", "fine\n{% if %}");
  const auto invalid = ChatTemplate::FromGguf(**OpenBuilt(builder));
  EXPECT_EQ(invalid.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(invalid.status().message()), HasSubstr("line 2"));
  EXPECT_THAT(std::string(invalid.status().message()), HasSubstr(".gguf"));
}

TEST(ChatTemplateTest, RefusesWrongArguments) {
  const auto chat = Make("x");
  ExpectRefused(chat->Render(Json::array(), nullptr, true, nullptr), "at least one message");
  ExpectRefused(chat->Render("hello", nullptr, true, nullptr), "messages must be an array");
  ExpectRefused(chat->Render({"hello", "you"}, nullptr, true, nullptr), "must be an object");
  ExpectRefused(chat->Render(kHello, "tool", true, nullptr), "tools must be an array");
  ExpectRefused(chat->Render(kHello, nullptr, true, 3), "must be an object");
  ExpectRefused(chat->Render(kHello, nullptr, true, {{"messages", 1}}), "\"messages\" can't be");
}

TEST(ChatTemplateTest, PassesOnTheTemplatesMessage) {
  ExpectRefused(RenderHello("{{ raise_exception('Roles must alternate: ä') }}"),
                "Roles must alternate: ä");
  ExpectRefused(RenderHello("{{ messages[0].name.first }}"), "has no attribute 'name'");
  ExpectRefused(RenderHello("{{ 1 / 0 }}"), "ZeroDivisionError");
  ExpectRefused(RenderHello("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), "recurses");
  ExpectRefused(RenderHello("{{ '\\ud800' }}"), "refuses");
}

TEST(ChatTemplateTest, TheSandboxHolds) {
  for (const char* source :
       {"{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ namespace.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}", "{{ dict.__class__.__base__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ ('{0.__class__.__mro__}').format(1) }}", "{{ messages.append(1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "{{ namespace(__init__=1) }}",
        "{{ (messages | attr('__class__')).__mro__ }}", "{{ self.__class__.__mro__ }}",
        "{% include '/etc/passwd' %}", "{% import 'os' as os %}"}) {
    const auto text = RenderHello(source);
    EXPECT_TRUE(!text.ok() || text->empty()) << source << " gave " << *text;
  }
}

TEST(ChatTemplateTest, EndlessTemplatesAreEnded) {
  const ChatTemplateLimits limits{.time = std::chrono::milliseconds(200), .max_chars = 1000};
  const std::string loops =
      "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}";
  const auto endless = Make(loops, limits);
  for (int i = 0; i < 3; ++i) {
    ExpectRefused(endless->Render(kHello, nullptr, true, nullptr), "more than 200 ms");
    // The thread's next rendering isn't hit by the last one's exception.
    EXPECT_EQ(*RenderHello("{{ messages[0].content }}"), "Hello");
  }
  ExpectRefused(RenderHello("{% for a in range(90000) %}0123456789{% endfor %}", limits),
                "longer than 1000 characters");
}

TEST(ChatTemplateTest, StrftimeNowIsLocalTime) {
  const auto text = RenderHello("{{ strftime_now('%Y') }}");
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_GE(std::stoi(*text), 2024);
}

TEST(ChatTemplateTest, RendersFromManyThreads) {
  const auto chat = Make("{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}");
  std::vector<std::thread> threads;
  std::vector<int> wrong(6, 0);
  for (size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 100; ++i) {
        const std::string content = std::to_string(t) + "-" + std::to_string(i);
        const auto text =
            chat->Render({{{"role", "user"}, {"content", content}}}, nullptr, false, nullptr);
        wrong[t] += !text.ok() || *text != "user: " + content + ";";
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(wrong, testing::Each(0));
}

TEST(ChatTemplateTest, CheckpointsWithoutADefaultTemplateHaveNoChat) {
  HfTokenizerConfig config;
  config.path = "folder/tokenizer_config.json";
  EXPECT_EQ(ChatTemplate::FromHf(config).status().code(), absl::StatusCode::kNotFound);
  config.chat_templates["rag"] = "x";
  const auto rag = ChatTemplate::FromHf(config);
  EXPECT_EQ(rag.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(rag.status().message()), testing::HasSubstr("only \"rag\""));
  config.chat_templates["default"] = "{% if %}";
  const auto bad = ChatTemplate::FromHf(config);
  EXPECT_EQ(bad.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(bad.status().message()), testing::HasSubstr(config.path));
}

}  // namespace
}  // namespace penstock::router

// Another Python is first on PATH and the environment names others still: none may be taken.
int main(int argc, char** argv) {
  setenv("PYTHONHOME", "/nowhere", 1);
  setenv("PYTHONPATH", "/nowhere", 1);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
