#include "common/formats/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "tests/unit/common/formats/gguf_builder.h"

namespace penstock {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint32_t kF32 = 0;
constexpr uint32_t kQ4_1 = 3;

class GgufTest : public ::testing::Test {
 protected:
  GgufTest() : path_(testing::TempDir() + "gguf_test_" + std::to_string(getpid()) + ".gguf") {}
  ~GgufTest() override { std::remove(path_.c_str()); }

  absl::StatusOr<std::shared_ptr<const GgufFile>> OpenBytes(const std::string& bytes) {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << bytes;
    return GgufFile::Open(path_);
  }
  absl::StatusOr<std::shared_ptr<const GgufFile>> OpenBuilt(const GgufBuilder& builder) {
    return OpenBytes(builder.Build());
  }
  // The file must be refused with InvalidArgument, naming itself and `reason`.
  void ExpectRefused(const std::string& bytes, const std::string& reason) {
    const auto file = OpenBytes(bytes);
    ASSERT_FALSE(file.ok()) << "expected: " << reason;
    EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument) << file.status();
    EXPECT_THAT(std::string(file.status().message()), HasSubstr(path_));
    EXPECT_THAT(std::string(file.status().message()), HasSubstr(reason));
  }

  std::string path_;
};

std::string Floats(std::initializer_list<float> values) {
  std::string bytes;
  for (float value : values) bytes += GgufBuilder::Bytes(value);
  return bytes;
}

GgufBuilder SmallModel(uint32_t version = 3) {
  GgufBuilder builder(version);
  builder.Str("general.architecture", "llama")
      .U32("llama.block_count", 2)
      .F32("llama.rope.freq_base", 10000.5f)
      .Bool("tokenizer.ggml.add_bos_token", true)
      .Value("a.u8", GgufValueType::kU8, GgufBuilder::Bytes<uint8_t>(200))
      .Value("a.i8", GgufValueType::kI8, GgufBuilder::Bytes<int8_t>(-3))
      .Value("a.u16", GgufValueType::kU16, GgufBuilder::Bytes<uint16_t>(60000))
      .Value("a.i16", GgufValueType::kI16, GgufBuilder::Bytes<int16_t>(-300))
      .Value("a.i32", GgufValueType::kI32, GgufBuilder::Bytes<int32_t>(-70000))
      .Value("a.u64", GgufValueType::kU64, GgufBuilder::Bytes<uint64_t>(1ull << 40))
      .Value("a.i64", GgufValueType::kI64, GgufBuilder::Bytes<int64_t>(-5))
      .Value("a.f64", GgufValueType::kF64, GgufBuilder::Bytes<double>(0.25))
      .Strings("tokenizer.ggml.tokens", {"a", "", "\xC4\xA0word"})
      .I32s("tokenizer.ggml.token_type", {1, 3, 4})
      .Array("a.floats", GgufValueType::kF32, 2, Floats({1.5f, -2.0f}))
      .Array("a.bools", GgufValueType::kBool, 2, std::string("\1\0", 2))
      .Array("a.empty", GgufValueType::kString, 0, "")
      .Tensor("norm.weight", kF32, {3}, Floats({1, 2, 3}))
      .Tensor("blk.0.weight", kQ4_1, {64, 2}, std::string(80, 'q'));
  return builder;
}

TEST_F(GgufTest, ReadsMetadataOfEveryType) {
  for (uint32_t version : {2u, 3u}) {
    const auto file = OpenBuilt(SmallModel(version));
    ASSERT_TRUE(file.ok()) << file.status();
    const GgufFile& gguf = **file;
    EXPECT_EQ(gguf.version(), version);
    EXPECT_EQ(gguf.keys().size(), 17u);
    EXPECT_EQ(gguf.keys().front(), "general.architecture");
    EXPECT_EQ(*gguf.GetString("general.architecture"), "llama");
    EXPECT_EQ(*gguf.GetU32("llama.block_count"), 2u);
    EXPECT_EQ(*gguf.GetI32("llama.block_count"), 2);
    EXPECT_EQ(*gguf.GetU64("llama.block_count"), 2u);
    EXPECT_EQ(*gguf.GetF32("llama.rope.freq_base"), 10000.5f);
    EXPECT_EQ(*gguf.GetF32("a.f64"), 0.25f);
    EXPECT_EQ(*gguf.GetF32("a.i16"), -300.0f);
    EXPECT_TRUE(*gguf.GetBool("tokenizer.ggml.add_bos_token"));
    EXPECT_EQ(*gguf.GetU32("a.u8"), 200u);
    EXPECT_EQ(*gguf.GetI32("a.i8"), -3);
    EXPECT_EQ(*gguf.GetU32("a.u16"), 60000u);
    EXPECT_EQ(*gguf.GetI32("a.i32"), -70000);
    EXPECT_EQ(*gguf.GetU64("a.u64"), 1ull << 40);
    EXPECT_EQ(*gguf.GetI32("a.i64"), -5);
    EXPECT_THAT(*gguf.GetArray<std::string_view>("tokenizer.ggml.tokens"),
                ElementsAre("a", "", "\xC4\xA0word"));
    EXPECT_THAT(*gguf.GetArray<int32_t>("tokenizer.ggml.token_type"), ElementsAre(1, 3, 4));
    EXPECT_THAT(*gguf.GetArray<float>("a.floats"), ElementsAre(1.5f, -2.0f));
    EXPECT_THAT(*gguf.GetArray<bool>("a.bools"), ElementsAre(true, false));
    EXPECT_TRUE(gguf.GetArray<std::string_view>("a.empty")->empty());
    EXPECT_EQ(gguf.TypeOf("a.floats"), GgufValueType::kArray);
    EXPECT_EQ(gguf.TypeOf("nothing"), std::nullopt);
    EXPECT_TRUE(gguf.Has("a.u8"));
    EXPECT_FALSE(gguf.Has("a.u"));
  }
}

TEST_F(GgufTest, AbsentAndMistypedMetadata) {
  const auto file = OpenBuilt(SmallModel());
  ASSERT_TRUE(file.ok()) << file.status();
  const GgufFile& gguf = **file;
  EXPECT_EQ(gguf.GetU32("x").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(gguf.GetU32("x").status().message()), HasSubstr("\"x\" is missing"));
  EXPECT_EQ(*gguf.FindU32("x"), std::nullopt);
  EXPECT_EQ(*gguf.FindString("x"), std::nullopt);
  EXPECT_EQ(*gguf.FindArray<float>("x"), std::nullopt);
  EXPECT_FALSE(gguf.GetArray<float>("x").ok());
  EXPECT_FALSE(gguf.FindU32("general.architecture").ok());
  EXPECT_FALSE(gguf.FindU32("a.i32").ok()) << "negative";
  EXPECT_FALSE(gguf.FindU32("a.u64").ok()) << "too large";
  EXPECT_FALSE(gguf.FindBool("a.u8").ok());
  EXPECT_FALSE(gguf.FindString("a.u8").ok());
  EXPECT_FALSE(gguf.FindString("tokenizer.ggml.tokens").ok());
  EXPECT_FALSE(gguf.FindArray<float>("general.architecture").ok());
  EXPECT_FALSE(gguf.FindArray<uint32_t>("tokenizer.ggml.tokens").ok());
  EXPECT_FALSE(gguf.FindArray<std::string_view>("a.floats").ok());
}

TEST_F(GgufTest, PlacesTensors) {
  const auto file = OpenBuilt(SmallModel());
  ASSERT_TRUE(file.ok()) << file.status();
  const GgufFile& gguf = **file;
  ASSERT_EQ(gguf.tensors().size(), 2u);
  const GgufTensor* norm = gguf.FindTensor("norm.weight");
  ASSERT_NE(norm, nullptr);
  EXPECT_EQ(norm->type, GgmlType::kF32);
  EXPECT_EQ(norm->num_bytes, 12u);
  EXPECT_EQ(norm->offset % 32, 0u);
  EXPECT_EQ(std::memcmp(gguf.TensorData(*norm), Floats({1, 2, 3}).data(), 12), 0);
  const auto weight = gguf.GetTensor("blk.0.weight");
  ASSERT_TRUE(weight.ok());
  EXPECT_THAT((*weight)->dims, ElementsAre(64, 2));
  EXPECT_EQ((*weight)->num_elements, 128u);
  EXPECT_EQ((*weight)->num_bytes, 80u);
  EXPECT_EQ((*weight)->offset + 80, gguf.file_size());
  EXPECT_EQ(static_cast<char>(*gguf.TensorData(**weight)), 'q');
  EXPECT_EQ(gguf.FindTensor("blk.1.weight"), nullptr);
  EXPECT_FALSE(gguf.GetTensor("blk.1.weight").ok());
}

TEST_F(GgufTest, DeclaredAlignmentMovesTheData) {
  GgufBuilder builder;
  builder.PadTo(128).U32("general.alignment", 128).Tensor("w", kF32, {2}, Floats({4, 5}));
  const auto file = OpenBuilt(builder);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->tensors()[0].offset, 128u);
  EXPECT_EQ(std::memcmp((*file)->TensorData((*file)->tensors()[0]), Floats({4, 5}).data(), 8), 0);
}

TEST_F(GgufTest, AbsentFileIsNotFound) {
  EXPECT_EQ(GgufFile::Open("/nowhere/model.gguf").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(GgufTest, RefusesWhatIsNoGgufFile) {
  ExpectRefused("", "empty");
  ExpectRefused("GG", "not a GGUF file");
  ExpectRefused("PK\3\4 something else", "not a GGUF file");
  EXPECT_THAT(std::string(GgufFile::Open("/tmp").status().message()),
              HasSubstr("not a regular file"));
  ExpectRefused(GgufBuilder(1).Build(), "GGUF version 1;");
  ExpectRefused(GgufBuilder(4).Build(), "GGUF version 4;");
  ExpectRefused(GgufBuilder(0x03000000).Build(), "version 3 in big-endian");
}

TEST_F(GgufTest, RefusesImpossibleCounts) {
  ExpectRefused(GgufBuilder().Counts(1ull << 60, 0).Build(), "tensors can't fit");
  ExpectRefused(GgufBuilder().Counts(0, ~0ull).Build(), "metadata entries can't fit");
  ExpectRefused(GgufBuilder().Array("a", GgufValueType::kU64, 1ull << 61, "").Build(), "elements");
  ExpectRefused(GgufBuilder().Array("a", GgufValueType::kF32, 1ull << 40, "").Build(),
                "download it again");
  ExpectRefused(GgufBuilder().Array("a", GgufValueType::kString, ~0ull, "").Build(),
                "download it again");
}

TEST_F(GgufTest, RefusesBadMetadata) {
  ExpectRefused(GgufBuilder().U32("k", 1).U32("k", 1).Build(), "\"k\" occurs twice");
  ExpectRefused(GgufBuilder().U32("", 1).Build(), "has 0 bytes");
  ExpectRefused(GgufBuilder().Value("k", static_cast<GgufValueType>(13), "aaaa").Build(),
                "unknown value type 13");
  ExpectRefused(GgufBuilder().Value("k", GgufValueType::kBool, "\2").Build(), "neither 0 nor 1");
  ExpectRefused(GgufBuilder().Value("k", GgufValueType::kString, GgufBuilder::Bytes(~0ull)).Build(),
                "download it again");
  std::string nested;
  for (int i = 0; i < 20; ++i) {
    nested += GgufBuilder::Bytes<uint32_t>(9) + GgufBuilder::Bytes<uint64_t>(1);
  }
  ExpectRefused(GgufBuilder().Value("k", GgufValueType::kArray, nested).Build(), "too deeply");
}

TEST_F(GgufTest, RefusesBadTensors) {
  const std::string two = Floats({1, 2});
  const auto tensor = [&](const std::vector<uint64_t>& dims, uint32_t type = kF32) {
    return GgufBuilder().Tensor("w", type, dims, two).Build();
  };
  ExpectRefused(tensor({}), "0 dimensions");
  ExpectRefused(tensor({1, 1, 1, 1, 1}), "5 dimensions");
  ExpectRefused(tensor({2, 0}), "size 0");
  ExpectRefused(tensor({1ull << 40, 1ull << 40}), "impossibly large");
  ExpectRefused(tensor({1ull << 63}), "impossibly large");
  ExpectRefused(tensor({2}, 4), "type code 4");
  ExpectRefused(tensor({33}, kQ4_1), "not a multiple of Q4_1's block of 32");
  ExpectRefused(tensor({3}), "download it again");
  ExpectRefused(GgufBuilder().TensorAt("w", kF32, {2}, 8, two).Build(), "not a multiple of 32");
  ExpectRefused(GgufBuilder().TensorAt("w", kF32, {2}, ~0ull - 31, two).Build(), "beyond any file");
  ExpectRefused(GgufBuilder().TensorAt("w", kF32, {2}, 1 << 20, two).Build(), "\"w\" needs bytes");
  ExpectRefused(GgufBuilder().Tensor("w", kF32, {2}, two).Tensor("w", kF32, {2}, two).Build(),
                "\"w\" occurs twice");
  ExpectRefused(GgufBuilder().Tensor("w", kF32, {2}, two).TensorAt("v", kF32, {2}, 0, two).Build(),
                "overlap");
  for (uint32_t alignment : {0u, 4u, 48u, 0x80000000u}) {
    ExpectRefused(GgufBuilder().U32("general.alignment", alignment).Build(), "general.alignment");
  }
  ExpectRefused(GgufBuilder().Str("general.alignment", "32").Build(), "general.alignment");
}

TEST_F(GgufTest, EveryTruncationIsRefused) {
  const std::string whole = SmallModel().Build();
  for (size_t size = 0; size < whole.size(); ++size) {
    const auto file = OpenBytes(whole.substr(0, size));
    ASSERT_FALSE(file.ok()) << "at " << size << " of " << whole.size() << " bytes";
    EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument);
  }
}

// A corrupt file is either refused or harmless: everything it offers can be read.
TEST_F(GgufTest, RandomCorruptionNeverReadsOutside) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::printf("seed %u\n", seed);
  std::mt19937 random(seed);
  const std::string whole = SmallModel().Build();
  for (int round = 0; round < 3000; ++round) {
    std::string bytes = whole.substr(0, random() % 4 == 0 ? random() % whole.size() : whole.size());
    for (uint32_t n = random() % 4 + 1; n > 0 && !bytes.empty(); --n) {
      const uint8_t choices[] = {0, 1, 0xff, 0x7f, 0x80, static_cast<uint8_t>(random())};
      bytes[random() % bytes.size()] = static_cast<char>(choices[random() % 6]);
    }
    const auto file = OpenBytes(bytes);
    if (!file.ok()) {
      EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument) << file.status();
      continue;
    }
    uint64_t sum = 0;
    for (std::string_view key : (*file)->keys()) {
      const auto strings = (*file)->FindArray<std::string_view>(key);
      if (strings.ok()) {
        for (std::string_view text : **strings) {
          for (char c : text) sum += static_cast<uint8_t>(c);
        }
      }
      const auto text = (*file)->FindString(key);
      if (text.ok()) sum += (*text)->size();
      sum += (*file)->FindArray<int32_t>(key).ok() + (*file)->FindF32(key).ok();
    }
    for (const GgufTensor& tensor : (*file)->tensors()) {
      for (uint64_t i = 0; i < tensor.num_bytes; ++i) {
        sum += static_cast<uint8_t>((*file)->TensorData(tensor)[i]);
      }
    }
    EXPECT_GE(sum, 0u);
  }
}

TEST(GgmlTypeTest, BlocksMatchTheSpecification) {
  EXPECT_EQ(GetGgmlTypeInfo(GgmlType::kQ4_1).block_bytes, 2 + 2 + 16u);
  EXPECT_EQ(GetGgmlTypeInfo(GgmlType::kQ5_1).block_bytes, 2 + 2 + 4 + 16u);
  EXPECT_EQ(GetGgmlTypeInfo(GgmlType::kQ8_0).block_bytes, 2 + 32u);
  EXPECT_EQ(GetGgmlTypeInfo(GgmlType::kQ4_K).block_bytes, 2 + 2 + 12 + 128u);
  EXPECT_EQ(GetGgmlTypeInfo(GgmlType::kQ5_K).block_bytes, 2 + 2 + 12 + 32 + 128u);
  EXPECT_EQ(GetGgmlTypeInfo(GgmlType::kQ6_K).block_bytes, 128 + 64 + 16 + 2u);
  EXPECT_EQ(FindGgmlType(31), nullptr);
  EXPECT_EQ(FindGgmlType(30)->name, "BF16");
}

}  // namespace
}  // namespace penstock
