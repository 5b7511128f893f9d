// Chats as transformers renders them, from tools/golden/chat_golden.py: identical, byte for byte.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <memory>
#include <string>

#include "router/chat/chat_template.h"
#include "tests/unit/router/temp_folder.h"
#include "tests/unit/router/test_models.h"

namespace penstock::router {
namespace {

using Json = ChatTemplate::Json;

// How a checkpoint may hold its template.
enum class Form { kNone, kString, kList, kFile };

// The template as a Hugging Face checkpoint has it; as it is, without one.
absl::StatusOr<std::unique_ptr<ChatTemplate>> Make(Form form, const Json& source,
                                                   const Json& special_tokens) {
  if (form == Form::kNone) return ChatTemplate::Create({{"default", source}}, special_tokens);
  const TempFolder folder;
  Json config = special_tokens;
  config["bos_token"] = {{"content", special_tokens.at("bos_token")}, {"lstrip", false}};
  if (form == Form::kString) config["chat_template"] = source;
  if (form == Form::kList) {
    config["chat_template"] = Json::array(
        {{{"name", "rag"}, {"template", "not this"}}, {{"name", "default"}, {"template", source}}});
  }
  if (form == Form::kFile) {
    config["chat_template"] = "not this";
    folder.Write("chat_template.jinja", source.get<std::string>());
  }
  folder.Write("tokenizer_config.json", config.dump());
  const auto read = ReadHfTokenizerConfig(folder.path());
  return read.ok() ? ChatTemplate::FromHf(*read) : read.status();
}

class ChatGoldenTest : public ::testing::TestWithParam<Form> {};

TEST_P(ChatGoldenTest, TextIsIdentical) {
  std::ifstream golden(PENSTOCK_SOURCE_DIR "/tests/golden/chat/chat.jsonl");
  std::string line;
  ASSERT_TRUE(std::getline(golden, line)) << "no golden file";
  const Json facts = Json::parse(line);
  std::map<std::string, std::unique_ptr<ChatTemplate>> templates;
  for (const auto& [name, source] : facts.at("templates").items()) {
    auto chat = Make(GetParam(), source, facts.at("special_tokens"));
    ASSERT_TRUE(chat.ok()) << name << ": " << chat.status();
    templates[name] = *std::move(chat);
  }
  if (GetParam() == Form::kNone) {
    // The model's is taken from the model itself.
    const auto model = OpenModel();
    ASSERT_NE(model, nullptr);
    auto own = ChatTemplate::FromGguf(*model);
    ASSERT_TRUE(own.ok()) << own.status();
    templates["model"] = *std::move(own);
  }

  size_t count = 0;
  while (std::getline(golden, line)) {
    const Json test = Json::parse(line);
    const auto text = templates.at(test.at("template"))
                          ->Render(test.at("messages"), test.at("tools"),
                                   test.at("add_generation_prompt"), test.at("kwargs"));
    const std::string name =
        test.at("template").get<std::string>() + ", " + test.at("name").get<std::string>();
    ++count;
    if (test.contains("text")) {
      ASSERT_TRUE(text.ok()) << name << ": " << text.status();
      EXPECT_EQ(*text, test.at("text").get<std::string>()) << name;
    } else {
      ASSERT_FALSE(text.ok()) << name << ": " << *text;
      EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(text.status().message()),
                  testing::HasSubstr(test.at("error").get<std::string>()))
          << name;
    }
  }
  EXPECT_EQ(count, facts.at("cases").get<size_t>());
}

INSTANTIATE_TEST_SUITE_P(Forms, ChatGoldenTest,
                         ::testing::Values(Form::kNone, Form::kString, Form::kList, Form::kFile));

}  // namespace
}  // namespace penstock::router
