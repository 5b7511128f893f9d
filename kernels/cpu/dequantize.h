// GGUF's element and block formats, decoded on the host.
//
// Every quantised format is read as the same thing: a block of codes, each group of 16 or 32 of
// which has a scale and perhaps a minimum, so that value = scale * (code - zero) + minimum, the
// product and the sum each rounded to float32. In that form the values are the same bits as the
// `gguf` Python package's (block layouts: ggml's type table and ggml-quants of the ggml project).
// Pure functions, callable from any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/ops.h"

namespace penstock::kernels::cpu {

// How a format lies in memory. For F32, F16 and BF16 a block is one element and the rest is unused.
struct FormatInfo {
  const char* name;
  int block_size;   // elements a block
  int block_bytes;  // bytes a block
  int code_bits;    // 4, 5, 6 or 8 as stored; 0 for floating formats
  int zero;         // subtracted from a code
  int group_size;   // elements that share a scale: 32 or 16
  bool has_minimum;
  bool half_scales;  // scales and minimums are float16 numbers as they stand (else products:
                     // float32)
};

constexpr int kMaxBlockSize = 256;

// `format` must be one of the enumerators.
const FormatInfo& GetFormatInfo(WeightFormat format);
inline bool IsQuantized(WeightFormat format) { return GetFormatInfo(format).code_bits != 0; }

// One block of a quantised format: block_size codes (0 <= code < 2^code_bits, in the order of the
// elements), and block_size / group_size scales and minimums (0 where the format has none).
void DecodeBlock(WeightFormat format, const std::byte* block, uint8_t* codes, float* scales,
                 float* minimums);

// out[0 .. count) = the first `count` elements at `data`; count is a multiple of the format's
// block_size.
void Dequantize(WeightFormat format, const std::byte* data, int64_t count, float* out);

// IEEE 754 binary16 and bfloat16, by their bits; the conversions from float round to nearest, ties
// to even.
float HalfToFloat(uint16_t bits);
uint16_t FloatToHalf(float value);
float BFloat16ToFloat(uint16_t bits);
uint16_t FloatToBFloat16(float value);

}  // namespace penstock::kernels::cpu
