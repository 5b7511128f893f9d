// Golden blocks and values made by tools/golden/dequant_golden.py with the `gguf` Python package:
// the same bits.
#include "kernels/cpu/dequantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace penstock::kernels::cpu {
namespace {

struct GoldenCase {
  WeightFormat format;
  const char* file;
};

std::vector<char> ReadGolden(const std::string& name) {
  std::ifstream in(std::string(PENSTOCK_SOURCE_DIR) + "/tests/golden/dequant/" + name,
                   std::ios::binary);
  EXPECT_TRUE(in.is_open()) << name;
  return {std::istreambuf_iterator<char>(in), {}};
}

class DequantizeGolden : public testing::TestWithParam<GoldenCase> {};

TEST_P(DequantizeGolden, SameBitsAsGgufPackage) {
  const GoldenCase& param = GetParam();
  const std::vector<char> blocks = ReadGolden(std::string(param.file) + ".blocks");
  const std::vector<char> expected = ReadGolden(std::string(param.file) + ".f32");
  const FormatInfo& info = GetFormatInfo(param.format);
  const size_t count = blocks.size() / info.block_bytes * info.block_size;
  ASSERT_EQ(count * sizeof(float), expected.size());
  ASSERT_GT(count, 0u);
  std::vector<float> values(count);
  Dequantize(param.format, reinterpret_cast<const std::byte*>(blocks.data()),
             static_cast<int64_t>(count), values.data());
  for (size_t i = 0; i < count; ++i) {
    uint32_t want;
    std::memcpy(&want, expected.data() + 4 * i, 4);
    ASSERT_EQ(std::bit_cast<uint32_t>(values[i]), want) << param.file << " element " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Formats, DequantizeGolden,
    testing::Values(
        GoldenCase{WeightFormat::kF32, "f32"}, GoldenCase{WeightFormat::kF16, "f16"},
        GoldenCase{WeightFormat::kBF16, "bf16"}, GoldenCase{WeightFormat::kQ4_0, "q4_0"},
        GoldenCase{WeightFormat::kQ4_1, "q4_1"}, GoldenCase{WeightFormat::kQ5_0, "q5_0"},
        GoldenCase{WeightFormat::kQ5_1, "q5_1"}, GoldenCase{WeightFormat::kQ8_0, "q8_0"},
        GoldenCase{WeightFormat::kQ4_K, "q4_k"}, GoldenCase{WeightFormat::kQ5_K, "q5_k"},
        GoldenCase{WeightFormat::kQ6_K, "q6_k"}),
    [](const testing::TestParamInfo<GoldenCase>& info) { return std::string(info.param.file); });

TEST(HalfTest, EveryHalfSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = HalfToFloat(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(HalfToFloat(FloatToHalf(value))));
    } else {
      ASSERT_EQ(FloatToHalf(value), bits);
    }
  }
}

TEST(HalfTest, RoundsToNearestTiesToEven) {
  for (uint32_t bits = 0; bits < 0x7bff; ++bits) {
    const float low = HalfToFloat(static_cast<uint16_t>(bits));
    const float high = HalfToFloat(static_cast<uint16_t>(bits + 1));
    const float middle = (low + high) / 2;  // exact
    ASSERT_EQ(FloatToHalf(middle), bits % 2 == 0 ? bits : bits + 1);
    ASSERT_EQ(FloatToHalf(std::nextafter(middle, 0.0f)), bits);
    ASSERT_EQ(FloatToHalf(std::nextafter(middle, 1e9f)), bits + 1);
  }
  EXPECT_EQ(FloatToHalf(65519.0f), 0x7bff);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToHalf(1e30f), 0x7c00);
}

TEST(BFloat16Test, RoundsToNearestTiesToEven) {
  EXPECT_EQ(FloatToBFloat16(1.0f), 0x3f80);
  EXPECT_EQ(FloatToBFloat16(std::bit_cast<float>(0x3f808000u)), 0x3f80);
  EXPECT_EQ(FloatToBFloat16(std::bit_cast<float>(0x3f818000u)), 0x3f82);
  EXPECT_EQ(FloatToBFloat16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_EQ(FloatToBFloat16(INFINITY), 0x7f80);
  EXPECT_TRUE(std::isnan(BFloat16ToFloat(FloatToBFloat16(NAN))));
}

}  // namespace
}  // namespace penstock::kernels::cpu
