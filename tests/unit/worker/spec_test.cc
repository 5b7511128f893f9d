#include "worker/model/spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "common/status.h"
#include "tests/unit/worker/tiny_model.h"

namespace penstock::worker {
namespace {

using testing::HasSubstr;

absl::StatusOr<ModelSpec> Read(TinyModel* model) {
  const auto file = GgufFile::Open(model->WriteFile());
  if (!file.ok()) return file.status();
  return ReadModelSpec(**file);
}

std::string ErrorOf(TinyModel* model) {
  const auto spec = Read(model);
  EXPECT_FALSE(spec.ok());
  return Message(spec.status());
}

TEST(SpecTest, ReadsSizesAndTies) {
  TinyModel model({.layers = 3, .hidden = 96, .heads = 6, .kv_heads = 2, .head_size = 32});
  const auto spec = Read(&model);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->num_layers, 3);
  EXPECT_EQ(spec->hidden, 96);
  EXPECT_EQ(spec->num_heads, 6);
  EXPECT_EQ(spec->num_kv_heads, 2);
  EXPECT_EQ(spec->head_size, 32);
  EXPECT_EQ(spec->vocab_size, 96);
  EXPECT_TRUE(spec->tied_head);
  EXPECT_TRUE(spec->rope.interleaved);
  EXPECT_FLOAT_EQ(spec->attention_scale, 1 / std::sqrt(32.0f));
}

TEST(SpecTest, HeadSizeDefaultsToHiddenOverHeads) {
  TinyModel model({.hidden = 64, .heads = 4, .head_size = 16, .rotary = 16});
  model.keys.erase("llama.attention.key_length");
  model.keys.erase("llama.attention.value_length");
  model.keys.erase("llama.rope.dimension_count");
  const auto spec = Read(&model);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->head_size, 16);
  EXPECT_EQ(spec->rope.rotary_size, 16);
}

TEST(SpecTest, UnknownArchitectureNamesWhatIsSupported) {
  TinyModel model({});
  model.architecture = "mamba";
  EXPECT_THAT(ErrorOf(&model), AllOf(HasSubstr("mamba"), HasSubstr("supported: llama")));
}

TEST(SpecTest, MissingKeyIsNamed) {
  TinyModel model({});
  model.keys.erase("llama.block_count");
  EXPECT_THAT(ErrorOf(&model), HasSubstr("llama.block_count"));
}

TEST(SpecTest, ContradictionsAreRefused) {
  TinyModel heads({});
  heads.keys["llama.attention.head_count_kv"] = 3;
  EXPECT_THAT(ErrorOf(&heads), HasSubstr("3 KV heads"));
  TinyModel vocab({});
  vocab.keys["llama.vocab_size"] = 97;
  EXPECT_THAT(ErrorOf(&vocab), HasSubstr("97"));
  TinyModel rotary({});
  rotary.keys["llama.rope.dimension_count"] = 34;
  EXPECT_THAT(ErrorOf(&rotary), HasSubstr("34 rotary"));
  TinyModel zero({});
  zero.keys["llama.embedding_length"] = 0;
  EXPECT_THAT(ErrorOf(&zero), HasSubstr("embedding_length is 0"));
}

TEST(SpecTest, VariantsThatAreNotThereYetAreRefused) {
  TinyModel experts({});
  experts.keys["llama.expert_count"] = 8;
  EXPECT_THAT(ErrorOf(&experts), HasSubstr("experts"));
  TinyModel window({});
  window.keys["llama.attention.sliding_window"] = 4096;
  EXPECT_THAT(ErrorOf(&window), HasSubstr("sliding"));
}

TEST(SpecTest, RopeTableIsCosinesThenSines) {
  RopeSpec rope;
  rope.theta = 100;
  rope.rotary_size = 4;
  rope.linear_factor = 2;
  rope.freq_factor = {1, 4};
  const std::vector<float> table = RopeTable(rope, 3);
  ASSERT_EQ(table.size(), 12u);
  for (size_t p = 0; p < 3; ++p) {
    const double position = static_cast<double>(p);
    const double first = position * 0.5, second = position * 0.1 * 0.5 / 4;
    EXPECT_FLOAT_EQ(table[4 * p], std::cos(first));
    EXPECT_FLOAT_EQ(table[4 * p + 1], std::cos(second));
    EXPECT_FLOAT_EQ(table[4 * p + 2], std::sin(first));
    EXPECT_FLOAT_EQ(table[4 * p + 3], std::sin(second));
  }
}

}  // namespace
}  // namespace penstock::worker
