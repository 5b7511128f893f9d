// Hugging Face checkpoints as the worker reads them: specification, tensors and random weights.
#include "worker/weights/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "common/status.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/random_weight.h"
#include "tests/unit/worker/hf_model.h"
#include "worker/weights/loader.h"

namespace penstock::worker {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

std::unique_ptr<kernels::Backend> Float32Backend() {
  return kernels::cpu::MakeCpuBackend({.mode = kernels::cpu::Mode::kFloat32, .threads = 1});
}

// Opens and loads.
absl::Status Load(HfModel* model, const Shard& shard = {}) {
  ASSIGN_OR_RETURN(const Checkpoint checkpoint, OpenCheckpoint(model->Write(), true));
  const auto backend = Float32Backend();
  return LoadWeights(checkpoint.tensors.get(), checkpoint.spec, shard, 64, backend.get(),
                     [](float) { return absl::OkStatus(); })
      .status();
}

// With the key changed, the model must be refused with this code and text.
void ExpectRefused(const std::string& key, const json& value, absl::StatusCode code,
                   const std::string& reason) {
  HfModel model;
  model.config[key] = value;
  const auto spec = ReadHfModelSpec(model.WriteConfig());
  ASSERT_FALSE(spec.ok()) << key;
  EXPECT_EQ(spec.status().code(), code) << spec.status();
  EXPECT_THAT(Message(spec.status()), AllOf(HasSubstr("config.json"), HasSubstr(reason)));
}

constexpr auto kUnsupported = absl::StatusCode::kUnimplemented;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

TEST(HfSpecTest, ReadsSizes) {
  HfModel model;
  const auto spec = ReadHfModelSpec(model.WriteConfig());
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->num_layers, 2);
  EXPECT_EQ(spec->hidden, 64);
  EXPECT_EQ(spec->num_heads, 4);
  EXPECT_EQ(spec->num_kv_heads, 2);
  EXPECT_EQ(spec->head_size, 32);
  EXPECT_EQ(spec->mlp_width, 128);
  EXPECT_EQ(spec->vocab_size, 96);
  EXPECT_EQ(spec->max_positions, 128);
  EXPECT_FALSE(spec->tied_head);
  EXPECT_FALSE(spec->qkv_bias);
  EXPECT_FALSE(spec->rope.interleaved);
  EXPECT_EQ(spec->rope.rotary_size, 32);
  EXPECT_TRUE(spec->rope.freq_factor.empty());
  EXPECT_EQ(spec->random_format, kernels::WeightFormat::kBF16);
}

TEST(HfSpecTest, FamiliesDifferInBiases) {
  HfModel model;
  model.config["architectures"] = {"Qwen2ForCausalLM"};
  auto spec = ReadHfModelSpec(model.WriteConfig());
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_TRUE(spec->qkv_bias);
  EXPECT_FALSE(spec->o_bias);
  model.config["architectures"] = {"LlamaForCausalLM"};
  model.config["attention_bias"] = true;
  spec = ReadHfModelSpec(model.WriteConfig());
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_TRUE(spec->qkv_bias);
  EXPECT_TRUE(spec->o_bias);
  model.config["architectures"] = {"MistralForCausalLM"};
  model.config["attention_bias"] = false;
  EXPECT_TRUE(ReadHfModelSpec(model.WriteConfig()).ok());
}

// Llama 3.1 as published: the shortest wavelengths stay, the longest are stretched by the factor.
TEST(HfSpecTest, Llama3RopeScaling) {
  HfModel model;
  model.config["head_dim"] = 128;
  model.config["rope_theta"] = 500000.0;
  model.config["rope_scaling"] = {{"rope_type", "llama3"},
                                  {"factor", 8.0},
                                  {"low_freq_factor", 1.0},
                                  {"high_freq_factor", 4.0},
                                  {"original_max_position_embeddings", 8192}};
  const auto spec = ReadHfModelSpec(model.WriteConfig());
  ASSERT_TRUE(spec.ok()) << spec.status();
  const std::vector<float>& factor = spec->rope.freq_factor;
  ASSERT_EQ(factor.size(), 64u);
  EXPECT_EQ(factor[0], 1);
  EXPECT_EQ(factor[63], 8);
  for (int i = 1; i < 64; ++i) EXPECT_GE(factor[i], factor[i - 1]);
  // Frequency 30 has wavelength 2 pi 500000^(60/128) = 2948.5, between 2048 and 8192.
  const double smooth = (8192 / (2 * M_PI * std::pow(500000, 60.0 / 128)) - 1) / 3;
  EXPECT_NEAR(factor[30], 1 / ((1 - smooth) / 8 + smooth), 1e-5);
}

TEST(HfSpecTest, LinearRopeScaling) {
  HfModel model;
  model.config["rope_scaling"] = {{"type", "linear"}, {"factor", 4.0}};
  const auto spec = ReadHfModelSpec(model.WriteConfig());
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->rope.linear_factor, 4);
}

TEST(HfSpecTest, WhatIsNotSupportedIsNamed) {
  ExpectRefused("architectures", {"GPT2LMHeadModel"}, kUnsupported,
                "\"GPT2LMHeadModel\" is not supported; supported: LlamaForCausalLM");
  ExpectRefused("rope_scaling", {{"rope_type", "yarn"}, {"factor", 4}}, kUnsupported,
                "\"yarn\" is not supported; supported: default, linear, llama3");
  ExpectRefused("mlp_bias", true, kUnsupported, "mlp_bias");
  ExpectRefused("sliding_window", 64, kUnsupported, "sliding_window");
  ExpectRefused("hidden_act", "gelu", kUnsupported, "\"gelu\"; supported: silu");
  ExpectRefused("quantization_config", {{"quant_method", "gptq"}}, kUnsupported, "quantised");
  ExpectRefused("partial_rotary_factor", 0.5, kUnsupported, "partial_rotary_factor");
  ExpectRefused("dtype", "float8_e4m3fn", kUnsupported, "float8_e4m3fn");
}

TEST(HfSpecTest, ContradictionsAreRefused) {
  ExpectRefused("num_key_value_heads", 3, kInvalid, "3 KV heads");
  ExpectRefused("head_dim", 33, kInvalid, "heads of 33");
  ExpectRefused("head_dim", 1 << 24, kInvalid, "impossibly many");
}

TEST(HfLoaderTest, LoadsWholeAndInShares) {
  HfModel model;
  EXPECT_TRUE(Load(&model).ok()) << Load(&model);
  EXPECT_TRUE(Load(&model, {1, 2}).ok()) << Load(&model, {1, 2});
  EXPECT_THAT(Message(Load(&model, {0, 4})), HasSubstr("sizes that work: 1, 2"));
}

TEST(HfLoaderTest, TypesMayDiffer) {
  HfModel model;
  for (auto& [name, tensor] : model.tensors) tensor.dtype = name.size() % 2 == 0 ? "F32" : "F16";
  EXPECT_TRUE(Load(&model).ok()) << Load(&model);
}

TEST(HfLoaderTest, ATiedHeadMayBeStoredOrNot) {
  HfModel model;
  model.config["tie_word_embeddings"] = true;
  EXPECT_TRUE(Load(&model).ok()) << Load(&model);
  model.tensors.erase("lm_head.weight");
  EXPECT_TRUE(Load(&model).ok()) << Load(&model);
  model.config["tie_word_embeddings"] = false;
  EXPECT_THAT(Message(Load(&model)), HasSubstr("\"lm_head.weight\" is missing"));
}

TEST(HfLoaderTest, WhatContradictsTheConfigIsRefused) {
  HfModel missing;
  missing.tensors.erase("model.layers.1.mlp.down_proj.weight");
  EXPECT_THAT(Message(Load(&missing)), HasSubstr("model.layers.1.mlp.down_proj.weight"));
  HfModel shape;
  shape.tensors["model.layers.0.self_attn.k_proj.weight"].shape = {64, 32};
  EXPECT_THAT(
      Message(Load(&shape)),
      HasSubstr("k_proj.weight is [64, 32], but the model's config.json asks for [64, 64]"));
  HfModel vocabulary;
  vocabulary.config["vocab_size"] = 97;
  EXPECT_THAT(Message(Load(&vocabulary)), HasSubstr("[97, 64]"));
  HfModel layers;
  layers.config["num_hidden_layers"] = 1;
  EXPECT_THAT(Message(Load(&layers)), HasSubstr("is not part of a model"));
  HfModel type;
  type.tensors["model.layers.0.mlp.up_proj.weight"].dtype = "I32";
  EXPECT_THAT(Message(Load(&type)), AllOf(HasSubstr("up_proj"), HasSubstr("stored as I32")));
  HfModel norm;
  norm.tensors["model.norm.weight"].dtype = "I32";
  EXPECT_THAT(Message(Load(&norm)), AllOf(HasSubstr("model.norm.weight"), HasSubstr("I32")));
  HfModel bias;
  bias.tensors["model.layers.0.self_attn.q_proj.bias"].shape = {128};
  EXPECT_THAT(Message(Load(&bias)), HasSubstr("q_proj.bias is not part of a model"));
  bias.config["attention_bias"] = true;
  EXPECT_THAT(Message(Load(&bias)), HasSubstr("k_proj.bias\" is missing"));
}

TEST(HfLoaderTest, OldRotaryTablesAreIgnored) {
  HfModel model;
  model.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = {"F32", {16}};
  EXPECT_TRUE(Load(&model).ok()) << Load(&model);
}

TEST(DummyWeightsTest, AreMadeFromTheConfigAlone) {
  HfModel model;
  model.config["attention_bias"] = true;
  const auto checkpoint = OpenCheckpoint(model.WriteConfig(), /*with_tensors=*/false);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(OpenCheckpoint(model.WriteConfig(), true).status().code(), absl::StatusCode::kNotFound);
  const auto backend = Float32Backend();
  float last = 0;
  const auto weights =
      LoadWeights(nullptr, checkpoint->spec, {1, 2}, 64, backend.get(), [&last](float done) {
        EXPECT_GE(done, last);
        last = done;
        return absl::OkStatus();
      });
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(last, 1.0f);
  ASSERT_EQ(weights->layers.size(), 2u);
  const LayerWeights& layer = weights->layers[0];
  EXPECT_EQ(layer.qkv->rows, 128);
  EXPECT_EQ(layer.qkv->cols, 64);
  EXPECT_EQ(layer.o->cols, 64);
  EXPECT_EQ(layer.gate_up->rows, 128);
  EXPECT_EQ(weights->embedding->rows, 96);
  EXPECT_EQ(weights->head->rows, 48);
  EXPECT_EQ(layer.attention_norm->as<float>()[63], 1);
  EXPECT_EQ(layer.qkv_bias->as<float>()[0], 0);
}

TEST(DummyWeightsTest, AreUniformAndSeeded) {
  const auto backend = Float32Backend();
  ASSERT_TRUE(backend->Reserve({.max_tokens = 64, .max_rows = 64, .max_width = 64}).ok());
  constexpr int kRows = 48, kCols = 64;
  for (const auto format : {kernels::WeightFormat::kF32, kernels::WeightFormat::kBF16}) {
    const auto weight = backend->RandomWeight(format, kRows, kCols, kernels::WeightUse::kLinear, 7);
    ASSERT_TRUE(weight.ok()) << weight.status();
    // x * W^T for x the identity gives W's columns.
    std::vector<float> identity(kCols * kCols), out(kCols * kRows);
    for (int i = 0; i < kCols; ++i) identity[i * kCols + i] = 1;
    ASSERT_TRUE(backend
                    ->Linear({.x = identity.data(),
                              .x_stride = kCols,
                              .weight = weight->get(),
                              .out = out.data(),
                              .num_tokens = kCols})
                    .ok());
    double sum = 0, square = 0;
    for (int row = 0; row < kRows; ++row) {
      for (int col = 0; col < kCols; ++col) {
        const float value = out[col * kRows + row];
        EXPECT_NEAR(value, kernels::RandomWeightValue(7, row * kCols + col), 4e-6);
        sum += value;
        square += value * value;
      }
    }
    const double count = kRows * kCols;
    EXPECT_NEAR(sum / count, 0, 5e-5);
    EXPECT_NEAR(std::sqrt(square / count), 1e-3 / std::sqrt(3), 2e-5);
  }
  EXPECT_EQ(backend->RandomWeight(kernels::WeightFormat::kQ4_0, 4, 64, {}, 7).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_NE(kernels::RandomWeightValue(7, 0), kernels::RandomWeightValue(8, 0));
}

}  // namespace
}  // namespace penstock::worker
