#include "common/formats/hf_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "common/status.h"
#include "tests/unit/common/formats/model_folder.h"

namespace penstock {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class HfConfigTest : public ::testing::Test {
 protected:
  HfConfigTest()
      : config_({{"architectures", {"LlamaForCausalLM"}},
                 {"vocab_size", 1000},
                 {"max_position_embeddings", 2048},
                 {"hidden_size", 64},
                 {"intermediate_size", 128},
                 {"num_hidden_layers", 2},
                 {"num_attention_heads", 4},
                 {"rms_norm_eps", 1e-5}}) {}
  absl::StatusOr<HfConfig> Load() {
    folder_.Write("config.json", config_.dump());
    return LoadHfConfig(folder_.path());
  }
  // The configuration must be refused, with `reason`.
  void ExpectRefused(const std::string& key, const json& value, const std::string& reason) {
    const json before = config_;
    if (value.is_discarded()) {
      config_.erase(key);
    } else {
      config_[key] = value;
    }
    const auto config = Load();
    config_ = before;
    ASSERT_FALSE(config.ok()) << key << " = " << value;
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(Message(config.status()), HasSubstr("config.json"));
    EXPECT_THAT(Message(config.status()), HasSubstr(reason));
  }

  ModelFolder folder_;
  json config_;
};

TEST_F(HfConfigTest, DefaultsAreThoseOfTransformers) {
  const auto config = Load();
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->architecture, "LlamaForCausalLM");
  EXPECT_EQ(config->vocab_size, 1000);
  EXPECT_EQ(config->max_position_embeddings, 2048);
  EXPECT_EQ(config->num_key_value_heads, 4);
  EXPECT_EQ(config->head_dim, 16);
  EXPECT_EQ(config->dtype, "float32");
  EXPECT_FALSE(config->tie_word_embeddings);
  EXPECT_EQ(config->rope.type, "default");
  EXPECT_EQ(config->rope.theta, 10000);
  EXPECT_EQ(config->bos_token_id, std::nullopt);
  EXPECT_THAT(config->eos_token_ids, IsEmpty());
}

TEST_F(HfConfigTest, ReadsRopeAsTransformers4WritesIt) {
  config_["rope_theta"] = 500000.0;
  config_["rope_scaling"] = {{"rope_type", "llama3"},
                             {"factor", 8.0},
                             {"low_freq_factor", 1.0},
                             {"high_freq_factor", 4.0},
                             {"original_max_position_embeddings", 8192}};
  config_["torch_dtype"] = "bfloat16";
  const auto config = Load();
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->rope.type, "llama3");
  EXPECT_EQ(config->rope.theta, 500000);
  EXPECT_EQ(config->rope.factor, 8);
  EXPECT_EQ(config->rope.original_max_position_embeddings, 8192);
  EXPECT_EQ(config->dtype, "bfloat16");
}

TEST_F(HfConfigTest, ReadsRopeAsTransformers5WritesIt) {
  config_["rope_parameters"] = {{"rope_type", "linear"}, {"factor", 2.0}, {"rope_theta", 5000.0}};
  config_["dtype"] = "float16";
  const auto config = Load();
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->rope.type, "linear");
  EXPECT_EQ(config->rope.theta, 5000);
  EXPECT_EQ(config->rope.factor, 2);
  EXPECT_EQ(config->dtype, "float16");
}

TEST_F(HfConfigTest, GenerationConfigComesFirst) {
  config_["bos_token_id"] = 1;
  config_["eos_token_id"] = 2;
  const auto alone = Load();
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_EQ(alone->bos_token_id, 1);
  EXPECT_THAT(alone->eos_token_ids, ElementsAre(2));
  folder_.Write("generation_config.json", R"({"eos_token_id": [7, 8, 9]})");
  const auto both = Load();
  ASSERT_TRUE(both.ok()) << both.status();
  EXPECT_EQ(both->bos_token_id, 1);
  EXPECT_THAT(both->eos_token_ids, ElementsAre(7, 8, 9));
  folder_.Write("generation_config.json", R"({"eos_token_id": [7, 1000]})");
  EXPECT_THAT(Message(Load().status()),
              AllOf(HasSubstr("generation_config.json"), HasSubstr("id 1000")));
  folder_.Write("generation_config.json", R"({"eos_token_id": "7"})");
  EXPECT_THAT(Message(Load().status()), HasSubstr("an id or a list of ids"));
  folder_.Write("generation_config.json", "nonsense");
  EXPECT_THAT(Message(Load().status()), HasSubstr("not valid JSON"));
}

TEST_F(HfConfigTest, GenerationConfigOfSampling) {
  const auto none = ReadHfGenerationConfig(folder_.path());
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_EQ(none->do_sample, std::nullopt);
  EXPECT_EQ(none->temperature, std::nullopt);
  folder_.Write("generation_config.json", R"({"do_sample": true, "temperature": 1, "top_p": 0.9,
      "min_p": null, "repetition_penalty": 1.1, "top_k": 40, "max_new_tokens": 7})");
  const auto some = ReadHfGenerationConfig(folder_.path());
  ASSERT_TRUE(some.ok()) << some.status();
  EXPECT_EQ(some->do_sample, true);
  EXPECT_EQ(some->temperature, 1);
  EXPECT_EQ(some->top_p, 0.9);
  EXPECT_EQ(some->min_p, std::nullopt);
  EXPECT_EQ(some->repetition_penalty, 1.1);
  EXPECT_EQ(some->top_k, 40);
  EXPECT_EQ(some->max_new_tokens, 7);
}

TEST_F(HfConfigTest, GenerationConfigOfOtherTypesIsRefused) {
  const std::pair<const char*, const char*> wrong[] = {
      {"do_sample", "1"},       {"temperature", "\"hot\""},   {"top_p", "[0.9]"},
      {"min_p", "true"},        {"repetition_penalty", "{}"}, {"top_k", "40.5"},
      {"max_new_tokens", "1e3"}};
  for (const auto& [key, value] : wrong) {
    folder_.Write("generation_config.json", fmt::format("{{\"{}\": {}}}", key, value));
    const absl::Status status = ReadHfGenerationConfig(folder_.path()).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << key;
    EXPECT_THAT(Message(status), AllOf(HasSubstr("generation_config.json"), HasSubstr(key)));
  }
}

TEST_F(HfConfigTest, SlidingWindowsMayBeSwitchedOff) {
  config_["sliding_window"] = 512;
  EXPECT_EQ(Load()->sliding_window, 512);
  config_["use_sliding_window"] = false;
  EXPECT_EQ(Load()->sliding_window, std::nullopt);
  config_["use_sliding_window"] = true;
  config_["sliding_window"] = 2048;
  EXPECT_EQ(Load()->sliding_window, std::nullopt) << "as long as the context";
}

TEST_F(HfConfigTest, RefusesWhatIsMissingOrWrong) {
  const json absent(json::value_t::discarded);
  ExpectRefused("architectures", absent, "\"architectures\" is missing");
  ExpectRefused("architectures", json::array(), "\"architectures\" is []");
  ExpectRefused("hidden_size", absent, "\"hidden_size\" is missing");
  ExpectRefused("hidden_size", "64", "\"hidden_size\" is \"64\", not a whole number");
  ExpectRefused("hidden_size", 0, "\"hidden_size\" is 0, outside 1..");
  ExpectRefused("hidden_size", -5, "\"hidden_size\" is -5, outside 1..");
  ExpectRefused("vocab_size", int64_t{1} << 40, "outside 1..");
  ExpectRefused("vocab_size", UINT64_MAX, "not a whole number");
  ExpectRefused("rms_norm_eps", absent, "\"rms_norm_eps\" is missing");
  ExpectRefused("rms_norm_eps", 2.0, "\"rms_norm_eps\" is 2");
  ExpectRefused("tie_word_embeddings", 1, "not true or false");
  ExpectRefused("rope_theta", -1, "must be above 0");
  ExpectRefused("rope_scaling", "linear", "\"rope_scaling\" is \"linear\", not an object");
  ExpectRefused("rope_scaling", {{"factor", 2}}, "rope_type");
  ExpectRefused("rope_scaling", {{"type", "linear"}}, "\"rope_scaling.factor\" is missing");
  ExpectRefused("rope_scaling",
                {{"type", "llama3"},
                 {"factor", 8},
                 {"low_freq_factor", 4},
                 {"high_freq_factor", 4},
                 {"original_max_position_embeddings", 64}},
                "ascending");
  ExpectRefused("bos_token_id", 1000, "id 1000, outside the vocabulary of 1000");
}

TEST_F(HfConfigTest, RefusesFilesThatAreNone) {
  const absl::Status none = LoadHfConfig(folder_.path()).status();
  EXPECT_EQ(none.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(none), HasSubstr("there is no config.json"));
  for (const char* text : {"", "{", "[]", "3", R"({"vocab_size":1,"vocab_size":2})"}) {
    folder_.Write("config.json", text);
    EXPECT_EQ(LoadHfConfig(folder_.path()).status().code(), absl::StatusCode::kInvalidArgument);
  }
  folder_.Write("config.json", R"({"a":{"b":1,"b":2}})");
  EXPECT_THAT(Message(LoadHfConfig(folder_.path()).status()), HasSubstr("\"b\" twice"));
}

TEST_F(HfConfigTest, AFolderIsAHuggingFaceCheckpoint) {
  EXPECT_TRUE(IsHfCheckpoint(folder_.path()));
  folder_.Write("model.gguf", "GGUF");
  EXPECT_FALSE(IsHfCheckpoint(folder_.File("model.gguf")));
  EXPECT_FALSE(IsHfCheckpoint("/nowhere"));
}

}  // namespace
}  // namespace penstock
