#include "router/service/load_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/unit/router/temp_folder.h"
#include "tests/unit/router/test_models.h"

namespace penstock::router {
namespace {

using testing::HasSubstr;

// A checkpoint of which the router needs no more than its configuration.
class LoadModelTest : public testing::Test {
 protected:
  LoadModelTest() {
    folder_.Write("config.json", R"({"architectures": ["LlamaForCausalLM"], "vocab_size": 100,
        "max_position_embeddings": 64, "hidden_size": 8, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 1, "rms_norm_eps": 1e-5})");
  }
  absl::StatusOr<ServedModel> Load(bool use_generation_config = true) {
    return LoadModel({.path = folder_.path(),
                      .names = {},
                      .tokenizer_optional = true,
                      .use_generation_config = use_generation_config});
  }
  // The defaults with this generation_config.json.
  SamplingDefaults DefaultsOf(std::string_view generation_config) {
    folder_.Write("generation_config.json", generation_config);
    const auto model = Load();
    EXPECT_TRUE(model.ok()) << model.status();
    return model.ok() ? model->defaults : SamplingDefaults();
  }

  TempFolder folder_;
};

TEST_F(LoadModelTest, WithoutGenerationConfigDefaultsArePenstocks) {
  const auto model = Load();
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->defaults, SamplingDefaults());
  EXPECT_EQ(DefaultsOf(R"({"eos_token_id": 2})"), SamplingDefaults());
}

TEST_F(LoadModelTest, GenerationConfigGivesDefaults) {
  const SamplingDefaults defaults = DefaultsOf(R"({"temperature": 0.6, "top_p": 0.9, "min_p": 0.05,
      "repetition_penalty": 1.1, "top_k": 40, "max_new_tokens": 7, "do_sample": true})");
  EXPECT_EQ(defaults, (SamplingDefaults{.temperature = 0.6,
                                        .top_p = 0.9,
                                        .min_p = 0.05,
                                        .repetition_penalty = 1.1,
                                        .top_k = 40,
                                        .max_new_tokens = 7}));
}

TEST_F(LoadModelTest, NotToSampleIsGreedy) {
  EXPECT_EQ(DefaultsOf(R"({"do_sample": false})").temperature, 0);
  EXPECT_EQ(DefaultsOf(R"({"do_sample": false, "temperature": 0.6})").temperature, 0);
  EXPECT_EQ(DefaultsOf(R"({"do_sample": true})").temperature, 1);
  EXPECT_EQ(DefaultsOf(R"({"temperature": 0.6})").temperature, 0.6);
}

TEST_F(LoadModelTest, BadGenerationConfigIsRefusedUnlessUnused) {
  for (const char* bad : {R"({"top_p": 1.5})", R"({"top_p": "most"})"}) {
    folder_.Write("generation_config.json", bad);
    const absl::Status status = Load().status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(Message(status), HasSubstr(folder_.path() + "/generation_config.json: "));
    EXPECT_THAT(Message(status), HasSubstr("top_p"));
    const auto model = Load(/*use_generation_config=*/false);
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ(model->defaults, SamplingDefaults());
  }
}

}  // namespace
}  // namespace penstock::router
