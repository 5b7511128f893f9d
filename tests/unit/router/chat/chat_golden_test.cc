// Chats as transformers renders them, from tools/golden/chat_golden.py: identical, byte for byte.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <memory>
#include <string>

#include "router/chat/chat_template.h"
#include "tests/unit/router/test_models.h"

namespace penstock::router {
namespace {

using Json = ChatTemplate::Json;

TEST(ChatGoldenTest, TextIsIdentical) {
  std::ifstream golden(PENSTOCK_SOURCE_DIR "/tests/golden/chat/chat.jsonl");
  std::string line;
  ASSERT_TRUE(std::getline(golden, line)) << "no golden file";
  const Json facts = Json::parse(line);
  std::map<std::string, std::unique_ptr<ChatTemplate>> templates;
  for (const auto& [name, source] : facts.at("templates").items()) {
    auto chat = ChatTemplate::Create({{"default", source}}, facts.at("special_tokens"));
    ASSERT_TRUE(chat.ok()) << name << ": " << chat.status();
    templates[name] = *std::move(chat);
  }
  // The model's is taken from the model itself.
  const auto model = OpenModel();
  ASSERT_NE(model, nullptr);
  auto own = ChatTemplate::FromGguf(*model);
  ASSERT_TRUE(own.ok()) << own.status();
  templates["model"] = *std::move(own);

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

}  // namespace
}  // namespace penstock::router
