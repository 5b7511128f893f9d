#include "router/tokenizer/hf_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "router/tokenizer/hf_tokenizer_config.h"
#include "router/tokenizer/tokenizer.h"
#include "tests/unit/router/temp_folder.h"
#include "tests/unit/router/test_models.h"

namespace penstock::router {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

// The tiny vocabulary of test_models.h as a tokenizer.json.
Json TinyFile() {
  const TinyVocabulary tiny;
  Json vocab = Json::object();
  Json added = Json::array();
  for (size_t i = 0; i < tiny.tokens.size(); ++i) {
    if (tiny.types[i] == 1) {
      vocab[tiny.tokens[i]] = i;
    } else {
      added.push_back({{"id", i},
                       {"content", tiny.tokens[i]},
                       {"special", tiny.types[i] == 3},
                       {"normalized", false}});
    }
  }
  return {{"version", "1.0"},
          {"added_tokens", added},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", tiny.merges}}}};
}

class HfTokenizerTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const Json& file) {
    folder_.Write("tokenizer.json", file.dump());
    return Tokenizer::FromHf(folder_.path(), config_);
  }
  std::unique_ptr<Tokenizer> Loaded(const Json& file) {
    auto tokenizer = Load(file);
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
  }
  void ExpectRefused(const Json& file, absl::StatusCode code, const std::string& reason) {
    const auto tokenizer = Load(file);
    ASSERT_FALSE(tokenizer.ok()) << "expected: " << reason;
    EXPECT_EQ(tokenizer.status().code(), code) << tokenizer.status();
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(reason));
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(folder_.path()));
  }
  void ExpectDamaged(const Json& file, const std::string& reason) {
    ExpectRefused(file, absl::StatusCode::kInvalidArgument, reason);
  }
  void ExpectUnknown(const Json& file, const std::string& reason) {
    ExpectRefused(file, absl::StatusCode::kUnimplemented, reason);
  }

  TempFolder folder_;
  HfConfig config_;
};

TEST_F(HfTokenizerTest, IsTheSameAsFromGguf) {
  const auto tokenizer = Loaded(TinyFile());
  const auto gguf = MakeTinyTokenizer();
  for (const char* text :
       {"hello wo", "h<|end|>e", "<tool>hello<tool>>", "<<tool>>>", "\xC3\xA9\n12"}) {
    EXPECT_EQ(tokenizer->Encode(text, true), gguf->Encode(text, true)) << text;
    EXPECT_EQ(tokenizer->Encode(text, false), gguf->Encode(text, false)) << text;
    EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text, true), false), text);
  }
  EXPECT_TRUE(tokenizer->IsSpecial(261));
  EXPECT_FALSE(tokenizer->IsSpecial(263));
  EXPECT_EQ(tokenizer->vocab_size(), 265);
}

TEST_F(HfTokenizerTest, SpecialTokensComeFromWhereTheyAreNamed) {
  EXPECT_EQ(Loaded(TinyFile())->bos_id(), -1);
  EXPECT_TRUE(Loaded(TinyFile())->eos_ids().empty());
  config_.bos_token_id = 5;
  config_.eos_token_ids = {7, 9};
  EXPECT_EQ(Loaded(TinyFile())->bos_id(), 5);
  EXPECT_THAT(Loaded(TinyFile())->eos_ids(), ElementsAre(7, 9));
  folder_.Write(
      "tokenizer_config.json",
      R"({"bos_token": "<|start|>", "eos_token": {"content": "<|end|>", "lstrip": false}})");
  EXPECT_EQ(Loaded(TinyFile())->bos_id(), 262);
  EXPECT_EQ(Loaded(TinyFile())->eos_id(), 7);
  EXPECT_THAT(Loaded(TinyFile())->eos_ids(), ElementsAre(7, 9, 261));
  config_.eos_token_ids = {261};
  EXPECT_THAT(Loaded(TinyFile())->eos_ids(), ElementsAre(261));
}

TEST_F(HfTokenizerTest, PromptsBeginAsTheFilesSay) {
  Json file = TinyFile();
  EXPECT_THAT(Loaded(file)->EncodePrompt("h", true), ElementsAre('h'));
  const Json special = {{"SpecialToken", {{"id", "<|start|>"}, {"type_id", 0}}}};
  const Json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  file["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single", {special, text, special}},
      {"special_tokens", {{"<|start|>", {{"id", "<|start|>"}, {"ids", {262}}}}}}};
  EXPECT_THAT(Loaded(file)->EncodePrompt("h", true), ElementsAre(262, 'h', 262));
  EXPECT_THAT(Loaded(file)->EncodePrompt("h", false), ElementsAre('h'));
  folder_.Write("tokenizer_config.json", R"({"add_bos_token": false})");
  EXPECT_THAT(Loaded(file)->EncodePrompt("h", true), ElementsAre('h'));
  folder_.Write("tokenizer_config.json",
                R"({"add_bos_token": true, "add_eos_token": true, "bos_token": "<|start|>",)"
                R"("eos_token": "<|end|>"})");
  EXPECT_THAT(Loaded(file)->EncodePrompt("h", true), ElementsAre(262, 'h', 261));
  EXPECT_TRUE(Loaded(file)->add_bos());
}

TEST_F(HfTokenizerTest, OldFilesNameNoModelType) {
  Json file = TinyFile();
  file["model"].erase("type");
  EXPECT_THAT(Loaded(file)->Encode("hello", true), ElementsAre(259));
}

TEST_F(HfTokenizerTest, IdsMayHaveGaps) {
  Json file = TinyFile();
  file["added_tokens"].push_back({{"id", 300}, {"content", "<far>"}, {"special", true}});
  const auto tokenizer = Loaded(file);
  EXPECT_EQ(tokenizer->vocab_size(), 301);
  EXPECT_THAT(tokenizer->Encode("<far>", true), ElementsAre(300));
  EXPECT_EQ(tokenizer->TokenBytes(290), "");
}

TEST_F(HfTokenizerTest, AbsentFilesAreNamed) {
  const auto none = Tokenizer::FromHf(folder_.path(), config_);
  EXPECT_EQ(none.status().code(), absl::StatusCode::kNotFound);
  folder_.Write("tokenizer.model", "x");
  const auto old = Tokenizer::FromHf(folder_.path(), config_);
  EXPECT_EQ(old.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(old.status().message()), HasSubstr("let transformers write one"));
}

TEST_F(HfTokenizerTest, DamagedFilesAreRefused) {
  folder_.Write("tokenizer.json", R"({"model": {"type": "BPE", "vocab": )");
  EXPECT_EQ(Tokenizer::FromHf(folder_.path(), config_).status().code(),
            absl::StatusCode::kInvalidArgument);
  ExpectDamaged(Json::array(), "not a JSON object");
  const auto with = [](const char* pointer, Json value) {
    Json file = TinyFile();
    file[Json::json_pointer(pointer)] = std::move(value);
    return file;
  };
  ExpectDamaged(with("/model", nullptr), "\"model\" is missing");
  ExpectDamaged(with("/model/vocab", nullptr), "\"model.vocab\" is missing");
  ExpectDamaged(with("/model/vocab", Json::object()), "\"model.vocab\" must be an object");
  ExpectDamaged(with("/model/vocab", Json::array({"a"})), "\"model.vocab\" must be an object");
  ExpectDamaged(with("/model/vocab/zz", "7"), "no whole number for \"zz\"");
  ExpectDamaged(with("/model/vocab/zz", -1), "\"zz\" has the id -1");
  ExpectDamaged(with("/model/vocab/zz", 1 << 30), "\"zz\" has the id 1073741824");
  ExpectDamaged(with("/model/vocab/zz", 259), "have the same id, 259");
  ExpectDamaged(with("/model/merges", nullptr), "\"model.merges\" is missing");
  ExpectDamaged(with("/model/merges", "h e"), "\"model.merges\" is not a list");
  ExpectDamaged(with("/model/merges/1", "ll"), "\"model.merges[1]\" is not two tokens");
  ExpectDamaged(with("/model/merges/1", {"l", "l", "l"}), "\"model.merges[1]\" is not two tokens");
  ExpectDamaged(with("/model/merges/1", "l q"), "\"model.merges[1]\" names or makes");
  ExpectDamaged(with("/model/unk_token", "<unk>"), "\"model.unk_token\" is \"<unk>\"");
  ExpectDamaged(with("/model/ignore_merges", "yes"), "\"model.ignore_merges\" is \"yes\"");
  ExpectDamaged(with("/added_tokens", "none"), "\"added_tokens\" is \"none\", not a list");
  ExpectDamaged(with("/added_tokens/0/content", 7), "\"added_tokens[0].content\" is 7");
  ExpectDamaged(with("/added_tokens/0/id", nullptr), "\"added_tokens[0].id\" is missing");
  ExpectDamaged(with("/added_tokens/0/id", -3), "\"added_tokens[0].id\" is -3");
  ExpectDamaged(with("/added_tokens/0/id", 4), "have the same id, 4");
  ExpectDamaged(with("/added_tokens/0/content", "hello"), "\"hello\" has two ids, 259 and 261");
  ExpectDamaged(with("/added_tokens/0/lstrip", 1), "\"added_tokens[0].lstrip\" is 1");
  ExpectDamaged(with("/pre_tokenizer", "ByteLevel"), "\"pre_tokenizer\" is no object");
  ExpectDamaged(with("/pre_tokenizer", Json::object()), "\"pre_tokenizer.type\" is missing");
  ExpectDamaged(with("/pre_tokenizer", {{"type", "Sequence"}}), "\"pre_tokenizer.pretokenizers\"");
  ExpectDamaged(with("/decoder", {{"type", "Sequence"}, {"decoders", 7}}),
                "\"decoder.decoders\" is 7");
  ExpectDamaged(with("/post_processor", {{"type", "TemplateProcessing"}}),
                "\"post_processor.single\" is missing");
  folder_.Write("tokenizer_config.json", R"({"eos_token": 7})");
  ExpectDamaged(TinyFile(), "\"eos_token\" is 7, not a string or an object");
}

TEST_F(HfTokenizerTest, BadSplitsAreRefused) {
  const auto split = [](const Json& pattern, const char* behavior) {
    Json file = TinyFile();
    const Json step = {{"type", "Split"}, {"pattern", pattern}, {"behavior", behavior}};
    file["pre_tokenizer"] = {{"type", "Sequence"},
                             {"pretokenizers", {step, file["pre_tokenizer"]}}};
    return file;
  };
  EXPECT_TRUE(Load(split({{"Regex", "\\p{L}+"}}, "Isolated")).ok());
  ExpectDamaged(split({{"Regex", "a("}}, "Isolated"), "the pattern a( is not valid");
  ExpectDamaged(split({{"Regex", "\\p{Klingon}"}}, "Isolated"), "\\p{Klingon} is not valid");
  ExpectUnknown(split({{"Regex", "\\bx"}}, "Isolated"), "the pattern \\bx has \\b at 0");
  ExpectDamaged(split({{"Glob", "*"}}, "Isolated"), "pretokenizers[0].pattern\" is {\"Glob\"");
  ExpectDamaged(split({{"Regex", "x"}}, "Shuffled"), "pretokenizers[0].behavior\" is \"Shuffled\"");
}

TEST_F(HfTokenizerTest, UnknownKindsAreNamed) {
  const auto with = [](const char* pointer, Json value) {
    Json file = TinyFile();
    file[Json::json_pointer(pointer)] = std::move(value);
    return file;
  };
  ExpectUnknown(with("/model/type", "Unigram"), "\"model.type\" is Unigram; Penstock knows BPE");
  ExpectUnknown(with("/model/dropout", 0.1), "\"model.dropout\" is 0.1");
  ExpectUnknown(with("/model/continuing_subword_prefix", "##"), "continuing_subword_prefix");
  ExpectUnknown(with("/normalizer", {{"type", "NFKC"}}), "\"normalizer\" is a NFKC");
  ExpectUnknown(
      with("/pre_tokenizer", {{"type", "BertPreTokenizer"}}),
      "\"pre_tokenizer\" is a BertPreTokenizer, which Penstock doesn't know here: it knows "
      "Split, Digits");
  ExpectUnknown(with("/decoder", {{"type", "WordPiece"}}), "\"decoder\" is a WordPiece");
  ExpectUnknown(with("/post_processor", {{"type", "BertProcessing"}}),
                "\"post_processor\" is a BertProcessing");
  const Json byte_level = {{"type", "ByteLevel"}};
  ExpectUnknown(with("/pre_tokenizer",
                     {{"type", "Sequence"}, {"pretokenizers", {byte_level, {{"type", "Digits"}}}}}),
                "a step after ByteLevel");
}

TEST(HfTokenizerConfigTest, TemplatesInAnyForm) {
  const TempFolder folder;
  EXPECT_TRUE(ReadHfTokenizerConfig(folder.path())->chat_templates.empty());
  folder.Write("tokenizer_config.json", R"({"chat_template": "one"})");
  EXPECT_EQ(ReadHfTokenizerConfig(folder.path())->chat_templates.at("default"), "one");
  folder.Write("tokenizer_config.json",
               R"({"chat_template": [{"name": "default", "template": "a"},)"
               R"({"name": "tool_use", "template": "b"}]})");
  auto config = ReadHfTokenizerConfig(folder.path());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->chat_templates.at("default"), "a");
  EXPECT_EQ(config->chat_templates.at("tool_use"), "b");
  folder.Write("chat_template.jinja", "file");
  folder.Write("additional_chat_templates/tool_use.jinja", "tools");
  folder.Write("special_tokens_map.json", R"({"pad_token": {"content": "<pad>"}})");
  config = ReadHfTokenizerConfig(folder.path());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->chat_templates.at("default"), "file");
  EXPECT_EQ(config->chat_templates.at("tool_use"), "tools");
  EXPECT_EQ(config->special_tokens.at("pad_token"), "<pad>");
}

TEST(HfTokenizerConfigTest, DamagedFilesAreRefused) {
  const TempFolder folder;
  const auto refused = [&](const char* file, const char* text, const char* reason) {
    folder.Write(file, text);
    const auto config = ReadHfTokenizerConfig(folder.path());
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << reason;
    EXPECT_THAT(std::string(config.status().message()), HasSubstr(reason));
    EXPECT_THAT(std::string(config.status().message()), HasSubstr(file));
  };
  refused("tokenizer_config.json", "{", "not valid JSON");
  refused("tokenizer_config.json", "[]", "not a JSON object");
  refused("tokenizer_config.json", R"({"chat_template": 7})", "\"chat_template\" is 7");
  refused("tokenizer_config.json", R"({"chat_template": [{"name": "x"}]})",
          "\"chat_template[0].template\" is missing");
  refused("tokenizer_config.json", R"({"bos_token": {}})", "\"bos_token.content\" is missing");
  refused("tokenizer_config.json", R"({"add_bos_token": 1})", "\"add_bos_token\" is 1");
  folder.Write("tokenizer_config.json", "{}");
  refused("chat_template.jinja", "\xff", "not valid UTF-8");
}

TEST(WithoutTextTest, SpeaksIdsAlone) {
  HfConfig config;
  config.bos_token_id = 1;
  config.eos_token_ids = {3, 4};
  const auto tokenizer = Tokenizer::WithoutText(config);
  EXPECT_FALSE(tokenizer->has_text());
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_THAT(tokenizer->eos_ids(), ElementsAre(3, 4));
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{7, 8}, true), "");
}

}  // namespace
}  // namespace penstock::router
