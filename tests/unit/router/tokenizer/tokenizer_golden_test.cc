// The ids that Hugging Face `tokenizers` gives, from tools/golden/tokenizer_golden.py.
#include <gtest/gtest.h>

#include <cctype>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "router/tokenizer/tokenizer.h"
#include "tests/unit/router/test_models.h"

namespace penstock::router {
namespace {

using Json = nlohmann::json;

// The model's tokeniser with another family's pre-tokeniser.
std::unique_ptr<Tokenizer> LoadWithFamily(const GgufFile& model, const std::string& family) {
  const auto strings = [&](const char* key) {
    const auto views = model.GetArray<std::string_view>(key);
    return std::vector<std::string>(views->begin(), views->end());
  };
  GgufBuilder builder;
  builder.Str("tokenizer.ggml.model", "gpt2")
      .Str("tokenizer.ggml.pre", family)
      .Strings("tokenizer.ggml.tokens", strings("tokenizer.ggml.tokens"))
      .I32s("tokenizer.ggml.token_type", *model.GetArray<int32_t>("tokenizer.ggml.token_type"))
      .Strings("tokenizer.ggml.merges", strings("tokenizer.ggml.merges"));
  const auto file = OpenBuilt(builder);
  auto tokenizer = Tokenizer::FromGguf(**file);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

std::string TextOf(const Json& entry) {
  if (entry.is_string()) return entry.get<std::string>();
  const std::string hex = entry.at("hex").get<std::string>();
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  }
  return bytes;
}

class TokenizerGoldenTest : public ::testing::TestWithParam<const char*> {};

TEST_P(TokenizerGoldenTest, IdsAreIdentical) {
  const std::string family = GetParam();
  const auto model = OpenModel();
  ASSERT_NE(model, nullptr);
  const auto tokenizer = LoadWithFamily(*model, family);
  ASSERT_NE(tokenizer, nullptr);

  std::ifstream golden(PENSTOCK_SOURCE_DIR "/tests/golden/tokenizer/" + family + ".jsonl");
  std::string line;
  ASSERT_TRUE(std::getline(golden, line)) << "no golden file for " << family;
  const Json facts = Json::parse(line);
  ASSERT_EQ(facts.at("family"), family);
  size_t count = 0;
  int failures = 0;
  while (std::getline(golden, line) && failures < 20) {
    const Json entry = Json::parse(line);
    const std::string text = TextOf(entry[0]);
    const auto ids = entry[1].get<std::vector<int32_t>>();
    const auto plain =
        entry.size() > 2 && !entry[2].is_null() ? entry[2].get<std::vector<int32_t>>() : ids;
    ++count;
    // Twice: the second time from the word cache.
    for (int round = 0; round < 2; ++round) {
      EXPECT_EQ(tokenizer->Encode(text, true), ids) << entry[0] << (++failures, "");
      EXPECT_EQ(tokenizer->Encode(text, false), plain) << entry[0] << (++failures, "");
    }
    if (entry[0].is_string()) {
      const std::string decoded = entry.size() > 3 ? entry[3].get<std::string>() : text;
      EXPECT_EQ(tokenizer->Decode(ids, false), decoded) << entry[0] << (++failures, "");
    }
  }
  EXPECT_EQ(count, facts.at("texts").get<size_t>());
}

INSTANTIATE_TEST_SUITE_P(Families, TokenizerGoldenTest,
                         ::testing::Values("smollm", "gpt-2", "llama-bpe", "qwen2"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) c = std::isalnum(c) ? c : '_';
                           return name;
                         });

TEST(ModelTokenizerTest, SpeaksOfItsModel) {
  const auto model = OpenModel();
  ASSERT_NE(model, nullptr);
  const auto tokenizer = Tokenizer::FromGguf(*model);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), 49152);
  EXPECT_EQ((*tokenizer)->bos_id(), 1);
  EXPECT_EQ((*tokenizer)->eos_id(), 2);
  EXPECT_EQ((*tokenizer)->eos_ids(), (std::vector<int32_t>{2, 0}));
  EXPECT_FALSE((*tokenizer)->add_bos());
}

}  // namespace
}  // namespace penstock::router
