// Tokenisers read from tokenizer.json give the ids that Hugging Face `tokenizers` gives: the
// model's own, exported from its GGUF (ids from tools/golden/tokenizer_golden.py), and two small
// ones under many steps (tools/golden/hf_tokenizer_golden.py).
#include <gtest/gtest.h>

#include <cctype>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "router/tokenizer/tokenizer.h"
#include "tests/unit/router/temp_folder.h"
#include "tests/unit/router/test_models.h"

namespace penstock::router {
namespace {

using Json = nlohmann::json;
using Ids = std::vector<int32_t>;

const std::string kGolden = PENSTOCK_SOURCE_DIR "/tests/golden/";

std::vector<Json> ReadLines(const std::string& path) {
  std::ifstream file(path);
  std::vector<Json> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(Json::parse(line));
  EXPECT_FALSE(lines.empty()) << "no golden file " << path;
  return lines;
}

std::string TextOf(const Json& entry) {
  if (entry.is_string()) return entry.get<std::string>();
  const auto hex = entry.at("hex").get<std::string>();
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  }
  return bytes;
}

std::unique_ptr<Tokenizer> Load(const std::string& dir, const HfConfig& config = {}) {
  auto tokenizer = Tokenizer::FromHf(dir, config);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

// The GGUF's tokeniser as a family's tokenizer.json; its merges as pairs, or as "a b".
Json Export(const GgufFile& model, const std::string& family, bool pairs) {
  const auto texts = *model.GetArray<std::string_view>("tokenizer.ggml.tokens");
  const auto kinds = *model.GetArray<int32_t>("tokenizer.ggml.token_type");
  Json vocab = Json::object();
  Json added = Json::array();
  for (size_t i = 0; i < texts.size(); ++i) {
    vocab[std::string(texts[i])] = i;
    if (kinds[i] != 3 && kinds[i] != 4) continue;
    added.push_back(
        {{"id", i}, {"content", texts[i]}, {"special", kinds[i] == 3}, {"normalized", false}});
  }
  Json merges = Json::array();
  const auto all_merges = *model.GetArray<std::string_view>("tokenizer.ggml.merges");
  for (const std::string_view merge : all_merges) {
    const size_t space = merge.find(' ');
    merges.push_back(pairs ? Json{merge.substr(0, space), merge.substr(space + 1)} : Json(merge));
  }
  const Json gpt2 = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  const Json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  const Json digits = {{"type", "Digits"}, {"individual_digits", true}};
  const auto llama3 = [](const std::string& numbers) {
    const std::string regex = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)" +
                              numbers + R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
    return Json{{"type", "Split"},
                {"pattern", {{"Regex", regex}}},
                {"behavior", "Isolated"},
                {"invert", false}};
  };
  Json steps = {gpt2};
  if (family == "smollm") steps = {digits, gpt2};
  if (family == "llama-bpe") steps = {llama3(R"(\p{N}{1,3})"), byte_level};
  if (family == "qwen2") steps = {llama3(R"(\p{N})"), byte_level};
  return {{"added_tokens", added},
          {"normalizer", family == "qwen2" ? Json{{"type", "NFC"}} : Json()},
          {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", steps}}},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model",
           {{"type", "BPE"},
            {"vocab", vocab},
            {"merges", merges},
            {"ignore_merges", family == "llama-bpe"}}}};
}

class ExportedTest : public ::testing::TestWithParam<const char*> {};

TEST_P(ExportedTest, IdsAreIdentical) {
  const std::string family = GetParam();
  const auto model = OpenModel();
  ASSERT_NE(model, nullptr);
  const TempFolder folder;
  folder.Write("tokenizer.json", Export(*model, family, family != "gpt-2").dump());
  const auto tokenizer = Load(folder.path());
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->vocab_size(), 49152);

  const std::vector<Json> lines = ReadLines(kGolden + "tokenizer/" + family + ".jsonl");
  int failures = 0;
  for (size_t i = 1; i < lines.size() && failures < 20; ++i) {
    const std::string text = TextOf(lines[i][0]);
    const auto ids = lines[i][1].get<Ids>();
    const bool differs = lines[i].size() > 2 && !lines[i][2].is_null();
    EXPECT_EQ(tokenizer->Encode(text, true), ids) << lines[i][0] << (++failures, "");
    EXPECT_EQ(tokenizer->Encode(text, false), differs ? lines[i][2].get<Ids>() : ids)
        << lines[i][0] << (++failures, "");
    if (!lines[i][0].is_string()) continue;
    EXPECT_EQ(tokenizer->Decode(ids, false),
              lines[i].size() > 3 ? lines[i][3].get<std::string>() : text)
        << lines[i][0] << (++failures, "");
  }
  EXPECT_EQ(lines.size() - 1, lines[0].at("texts").get<size_t>());
}

INSTANTIATE_TEST_SUITE_P(Families, ExportedTest,
                         ::testing::Values("smollm", "gpt-2", "llama-bpe", "qwen2"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) c = std::isalnum(c) ? c : '_';
                           return name;
                         });

class SmallTest : public ::testing::TestWithParam<const char*> {};

TEST_P(SmallTest, IdsAreIdentical) {
  const std::string dir = kGolden + "hf/" + GetParam();
  const auto tokenizer = Load(dir);
  ASSERT_NE(tokenizer, nullptr);
  const std::vector<Json> corpus = ReadLines(kGolden + "tokenizer/smollm.jsonl");
  const std::vector<Json> lines = ReadLines(dir + "/ids.jsonl");
  const Json& facts = lines[0];
  std::vector<std::string> texts;
  for (size_t i = 1; i < corpus.size(); ++i) texts.push_back(TextOf(corpus[i][0]));
  ASSERT_EQ(texts.size(), facts.at("texts").get<size_t>());
  for (const Json& text : facts.at("own_texts")) texts.push_back(text.get<std::string>());
  ASSERT_EQ(texts.size(), lines.size() - 1);
  int failures = 0;
  for (size_t i = 0; i < texts.size() && failures < 20; ++i) {
    const Json& line = lines[i + 1];
    const auto ids = line[0].get<Ids>();
    const bool differs = line.size() > 1 && !line[1].is_null();
    EXPECT_EQ(tokenizer->Encode(texts[i], true), ids) << texts[i] << (++failures, "");
    EXPECT_EQ(tokenizer->Encode(texts[i], false), differs ? line[1].get<Ids>() : ids)
        << texts[i] << (++failures, "");
    const bool broken = i + 1 < corpus.size() && !corpus[i + 1][0].is_string();
    const std::string decoded = line.size() > 2 ? line[2].get<std::string>() : texts[i];
    if (!broken) {
      EXPECT_EQ(tokenizer->Decode(ids, false), decoded) << texts[i] << (++failures, "");
    }
  }
  EXPECT_EQ(tokenizer->bos_id(), facts.at("bos_id").get<int>());
  EXPECT_EQ(tokenizer->eos_ids(), (Ids{facts.at("eos_id").get<int>()}));
  EXPECT_EQ(tokenizer->vocab_size(), facts.at("vocab_size").get<int>());
  EXPECT_TRUE(tokenizer->add_bos());
  for (const Json& prompt : facts.at("prompts")) {
    EXPECT_EQ(tokenizer->EncodePrompt(prompt[0].get<std::string>(), true), prompt[1].get<Ids>());
    EXPECT_EQ(tokenizer->EncodePrompt(prompt[0].get<std::string>(), false),
              tokenizer->Encode(prompt[0].get<std::string>(), true));
  }
}

INSTANTIATE_TEST_SUITE_P(Models, SmallTest, ::testing::Values("llama3", "sentencepiece"),
                         [](const auto& info) { return std::string(info.param); });

TEST(VariantsTest, IdsAreIdentical) {
  const std::vector<Json> lines = ReadLines(kGolden + "hf/variants.jsonl");
  const auto texts = lines[0].at("texts").get<std::vector<std::string>>();
  for (size_t i = 1; i < lines.size(); ++i) {
    const Json& variant = lines[i];
    SCOPED_TRACE(variant.at("name").get<std::string>());
    std::ifstream base(kGolden + "hf/" + variant.at("base").get<std::string>() + "/tokenizer.json");
    Json description = Json::parse(base);
    for (const auto& [key, value] : variant.at("replaced").items()) {
      if (key == "model") {
        description[key].update(value);
      } else {
        description[key] = value;
      }
    }
    const TempFolder folder;
    folder.Write("tokenizer.json", description.dump());
    const auto tokenizer = Load(folder.path());
    if (tokenizer == nullptr) continue;
    int failures = 0;
    for (size_t j = 0; j < texts.size() && failures < 5; ++j) {
      EXPECT_EQ(tokenizer->Encode(texts[j], true), variant.at("ids")[j].get<Ids>())
          << Json(texts[j]) << (++failures, "");
    }
  }
  EXPECT_GT(lines.size(), 20u);
}

}  // namespace
}  // namespace penstock::router
