#include "kernels/cpu/dequantize.h"

#include <bit>
#include <cstring>

#include "common/log.h"

namespace penstock::kernels::cpu {
namespace {

// In the order of WeightFormat.
constexpr FormatInfo kFormats[] = {
    {"F32", 1, 4, 0, 0, 0, false, false},        {"F16", 1, 2, 0, 0, 0, false, false},
    {"BF16", 1, 2, 0, 0, 0, false, false},       {"Q4_0", 32, 18, 4, 8, 32, false, true},
    {"Q4_1", 32, 20, 4, 0, 32, true, true},      {"Q5_0", 32, 22, 5, 16, 32, false, true},
    {"Q5_1", 32, 24, 5, 0, 32, true, true},      {"Q8_0", 32, 34, 8, 128, 32, false, true},
    {"Q4_K", 256, 144, 4, 0, 32, true, false},   {"Q5_K", 256, 176, 5, 0, 32, true, false},
    {"Q6_K", 256, 210, 6, 32, 16, false, false},
};

uint8_t Byte(const std::byte* p) { return static_cast<uint8_t>(*p); }

uint16_t Load16(const std::byte* p) {
  uint16_t value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

float LoadHalf(const std::byte* p) { return HalfToFloat(Load16(p)); }

// 32 codes of 4 bits: the low halves of 16 bytes, then the high ones. `high_bits` (or 0) gives each
// a fifth bit.
void DecodeNibbles(const std::byte* nibbles, uint32_t high_bits, uint8_t* codes) {
  for (int i = 0; i < 16; ++i) {
    codes[i] = static_cast<uint8_t>((Byte(nibbles + i) & 15) | ((high_bits >> i & 1) << 4));
    codes[i + 16] =
        static_cast<uint8_t>((Byte(nibbles + i) >> 4) | ((high_bits >> (i + 16) & 1) << 4));
  }
}

// The eight 6-bit (scale, minimum) pairs that Q4_K and Q5_K pack in 12 bytes: pairs 0 to 3 in the
// low six bits of bytes 0-3 and 4-7; of pairs 4 to 7 the low four bits in bytes 8-11, the top two
// on top of bytes 0-7.
void DecodePairs(const std::byte* packed, float d, float d_minimum, float* scales,
                 float* minimums) {
  for (int i = 0; i < 4; ++i) {
    const int a = Byte(packed + i), b = Byte(packed + 4 + i), c = Byte(packed + 8 + i);
    scales[i] = d * static_cast<float>(a & 63);
    minimums[i] = -(d_minimum * static_cast<float>(b & 63));
    scales[i + 4] = d * static_cast<float>((c & 15) | (a >> 6 << 4));
    minimums[i + 4] = -(d_minimum * static_cast<float>((c >> 4) | (b >> 6 << 4)));
  }
}

// Four runs of 64 elements: 32 bytes whose low halves are the first 32, whose high halves are the
// others. `high` (or null) holds the fifth bits: bit i of byte j belongs to element j of the
// i-th 32.
void DecodeKNibbles(const std::byte* nibbles, const std::byte* high, uint8_t* codes) {
  for (int64_t run = 0; run < 8; ++run) {
    for (int64_t i = 0; i < 32; ++i) {
      const int byte = Byte(nibbles + run / 2 * 32 + i);
      const int bit = high == nullptr ? 0 : Byte(high + i) >> run & 1;
      codes[run * 32 + i] = static_cast<uint8_t>((run % 2 == 0 ? byte & 15 : byte >> 4) | bit << 4);
    }
  }
}

// 128 bytes of low nibbles, 64 bytes of top bit pairs, 16 scales, d. Elements come in two halves of
// 128.
void DecodeQ6K(const std::byte* block, uint8_t* codes, float* scales) {
  const std::byte* high = block + 128;
  const std::byte* scale = block + 192;
  const float d = LoadHalf(block + 208);
  for (int64_t half = 0; half < 2; ++half) {
    for (int64_t run = 0; run < 4; ++run) {
      for (int64_t i = 0; i < 32; ++i) {
        const int low = Byte(block + half * 64 + run % 2 * 32 + i) >> (run / 2 * 4) & 15;
        const int top = Byte(high + half * 32 + i) >> (run * 2) & 3;
        codes[half * 128 + run * 32 + i] = static_cast<uint8_t>(low | top << 4);
      }
    }
  }
  for (int i = 0; i < 16; ++i) scales[i] = d * static_cast<float>(static_cast<int8_t>(scale[i]));
}

}  // namespace

const FormatInfo& GetFormatInfo(WeightFormat format) {
  const auto index = static_cast<size_t>(format);
  CHECK(index < std::size(kFormats));
  return kFormats[index];
}

void DecodeBlock(WeightFormat format, const std::byte* block, uint8_t* codes, float* scales,
                 float* minimums) {
  const FormatInfo& info = GetFormatInfo(format);
  if (!info.has_minimum)
    std::memset(minimums, 0, sizeof(float) * (info.block_size / info.group_size));
  if (info.half_scales) {
    scales[0] = LoadHalf(block);
    if (info.has_minimum) minimums[0] = LoadHalf(block + 2);
  }
  const std::byte* body = block + (info.has_minimum ? 4 : 2);
  uint32_t high_bits = 0;
  switch (format) {
    case WeightFormat::kQ4_0:
    case WeightFormat::kQ4_1:
      return DecodeNibbles(body, 0, codes);
    case WeightFormat::kQ5_0:
    case WeightFormat::kQ5_1:
      std::memcpy(&high_bits, body, sizeof(high_bits));
      return DecodeNibbles(body + 4, high_bits, codes);
    case WeightFormat::kQ8_0:
      for (int i = 0; i < 32; ++i) codes[i] = Byte(body + i) ^ 128;
      return;
    case WeightFormat::kQ4_K:
      DecodePairs(block + 4, LoadHalf(block), LoadHalf(block + 2), scales, minimums);
      return DecodeKNibbles(block + 16, nullptr, codes);
    case WeightFormat::kQ5_K:
      DecodePairs(block + 4, LoadHalf(block), LoadHalf(block + 2), scales, minimums);
      return DecodeKNibbles(block + 48, block + 16, codes);
    case WeightFormat::kQ6_K:
      return DecodeQ6K(block, codes, scales);
    default:
      CHECK(false && "not a quantised format");
  }
}

void Dequantize(WeightFormat format, const std::byte* data, int64_t count, float* out) {
  const FormatInfo& info = GetFormatInfo(format);
  if (format == WeightFormat::kF32) {
    std::memcpy(out, data, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  if (!IsQuantized(format)) {
    const bool half = format == WeightFormat::kF16;
    for (int64_t i = 0; i < count; ++i) {
      const uint16_t bits = Load16(data + 2 * i);
      out[i] = half ? HalfToFloat(bits) : BFloat16ToFloat(bits);
    }
    return;
  }
  CHECK(count % info.block_size == 0);
  uint8_t codes[kMaxBlockSize];
  float scales[kMaxBlockSize / 16] = {}, minimums[kMaxBlockSize / 16] = {};
  for (int64_t begin = 0; begin < count; begin += info.block_size, data += info.block_bytes) {
    DecodeBlock(format, data, codes, scales, minimums);
    for (int i = 0; i < info.block_size; ++i) {
      const int group = i / info.group_size;
      const float product = scales[group] * static_cast<float>(codes[i] - info.zero);
      out[begin + i] = info.has_minimum ? product + minimums[group] : product;
    }
  }
}

float HalfToFloat(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t magnitude = bits & 0x7fff;
  if (magnitude >= 0x7c00)
    return std::bit_cast<float>(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  if (magnitude >= 0x400) return std::bit_cast<float>(sign | ((magnitude << 13) + (112u << 23)));
  const float value = static_cast<float>(magnitude) * 0x1p-24f;  // subnormal: a multiple of 2^-24
  return sign != 0 ? -value : value;
}

uint16_t FloatToHalf(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000;
  uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (magnitude >= 0x47800000) return static_cast<uint16_t>(sign | 0x7c00);  // 65536 and above
  if (magnitude < 0x38800000) {
    // Subnormal: adding 0.5 leaves the multiple of 2^-24, rounded by the adder, in the low bits.
    const float sum = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(sum) - 0x3f000000));
  }
  magnitude += 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | ((magnitude - (112u << 23)) >> 13));
}

float BFloat16ToFloat(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

uint16_t FloatToBFloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace penstock::kernels::cpu
