// How packed weights lie in memory, and the table of inner kernels that one instruction set offers
// for them.
//
// All forms hold 16 rows at a time (a group), interleaved so that one 64-byte load feeds 16 lanes,
// a row each. A lane does the same sequence of operations whatever its neighbours, the tokens
// beside it and the instruction set (but for the scalar kernels, which have no fused multiply-add),
// so results don't depend on how a product is tiled.
//
// Quantised forms, 32 columns (a block) at a time: value = scale * (code - zero) + minimum.
//   4-bit codes: 4 vectors of 64 bytes; byte 4r+i of vector j holds row r's code of column 4j+i in
//   the low half, of column 16+4j+i in the high half. 8-bit codes: 8 vectors; byte 4r+i of vector j
//   is column 4j+i. Then 16 scales (float16 or float32), or with kGroup 16 two such rows of them;
//   then as many minimums. Where a block's scales are a mere 32 bytes, two blocks make a unit,
//   codes | codes | scales | scales, so that code vectors stay aligned to cache lines. An odd last
//   block has an unused half unit behind it.
// Dense forms: kFloat and kHalf, column by column, 16 values; kBFloat16, two columns at a time, 16
// x 2 values (columns
//   padded with zeros to a multiple of 32: oneDNN's BA16a16b2a).
//
// Implemented in linear_{scalar,avx2,avx512,avx512_bf16}.cc; these are compiled with the flags of
// their instruction set, so they use nothing from headers that another file might share (inline
// functions would be merged by the linker).
#pragma once

#include <cstddef>
#include <cstdint>

namespace penstock::kernels::cpu {

constexpr int kGroupRows = 16;
constexpr int kBlock = 32;       // columns that share a scale of the activations
constexpr int kQuantTokens = 8;  // tokens a quantised tile takes at most
constexpr int kDenseTokens = 6;  // tokens a dense tile takes at most
constexpr int kDenseGroups = 4;  // groups of rows a dense tile takes at most

enum class Form : uint8_t {
  kU4Half,      // Q4_0
  kU4HalfMin,   // Q4_1
  kU4FloatMin,  // Q4_K
  kU8Half,      // Q8_0; Q5_0 with 112 added to its codes, so that both have a zero of 128
  kU8HalfMin,   // Q5_1
  kU8FloatMin,  // Q5_K
  kU8Float16,   // Q6_K: two scales a block
  kFloat,
  kHalf,
  kBFloat16,
};
constexpr int kNumQuantForms = 7;
constexpr bool IsQuantForm(Form form) { return static_cast<int>(form) < kNumQuantForms; }

template <int kCodeBits, int kScaleSize, int kCodeZero, int kGroupSize>
struct QuantLayout {
  static constexpr int kBits = kCodeBits;
  static constexpr bool kHalfScales = kScaleSize == 2;
  static constexpr int kZero = kCodeZero;  // 0: the form has minimums instead
  static constexpr bool kMinimum = kCodeZero == 0;
  static constexpr int kGroup = kGroupSize;  // columns that share a scale
  static constexpr int kScalesPerBlock = kBlock / kGroupSize;
  static constexpr int64_t kCodeBytes = kGroupRows * kBlock * kCodeBits / 8;
  static constexpr int64_t kScaleBytes = kGroupRows * kScaleSize * kScalesPerBlock;
  static constexpr int64_t kMinimumBytes = kMinimum ? kScaleBytes : 0;
  static constexpr int kUnitBlocks = kScaleBytes + kMinimumBytes == 32 ? 2 : 1;
  static constexpr int64_t kUnitBytes = kUnitBlocks * (kCodeBytes + kScaleBytes + kMinimumBytes);

  // Where the parts of block b of a group lie.
  [[gnu::always_inline]] static constexpr int64_t CodeOffset(int64_t b) {
    return b / kUnitBlocks * kUnitBytes + b % kUnitBlocks * kCodeBytes;
  }
  [[gnu::always_inline]] static constexpr int64_t ScaleOffset(int64_t b) {
    return b / kUnitBlocks * kUnitBytes + kUnitBlocks * kCodeBytes + b % kUnitBlocks * kScaleBytes;
  }
  [[gnu::always_inline]] static constexpr int64_t MinimumOffset(int64_t b) {
    return ScaleOffset(b) + kScaleBytes;
  }
  [[gnu::always_inline]] static constexpr int64_t GroupBytes(int64_t blocks) {
    return (blocks + kUnitBlocks - 1) / kUnitBlocks * kUnitBytes;
  }
};
using U4Half = QuantLayout<4, 2, 8, 32>;
using U4HalfMin = QuantLayout<4, 2, 0, 32>;
using U4FloatMin = QuantLayout<4, 4, 0, 32>;
using U8Half = QuantLayout<8, 2, 128, 32>;
using U8HalfMin = QuantLayout<8, 2, 0, 32>;
using U8FloatMin = QuantLayout<8, 4, 0, 32>;
using U8Float16 = QuantLayout<8, 4, 32, 16>;

// What activations are quantised to.
enum class Activations : uint8_t { kInt8, kInt16 };
constexpr int kNumActivations = 2;

// 32 activations of a token, value = scale * q. Sums of a block with int16 fit int32: of codes
// times q below 32 * 255 * 32767 < 2^28, the offset below 32 * 128 * 32767 < 2^27.
template <int kNumWords>
struct ActivationBlock {
  static constexpr int kLargest = kNumWords == kBlock / 4 ? 127 : 32767;  // of |q|
  // int8: four q to a word in the order of the columns. int16: words 2j and 2j + 1 hold those of
  // columns 4j and 4j + 2, 4j + 1 and 4j + 3, as a vector of codes splits in even and odd bytes.
  int32_t words[kNumWords];
  float scale;
  float sum;          // scale * sum of q: what a minimum is multiplied by
  int32_t offset[2];  // -zero * sum of q, whole in [0] or of the halves: a dot product starts there
};
using Int8Block = ActivationBlock<kBlock / 4>;
using Int16Block = ActivationBlock<kBlock / 2>;

// Quantises one token's row of num_blocks blocks to out[0], out[step], ... A block with a NaN or an
// infinity makes its token's results NaN. q = round to nearest even(x * 127 / max |x|), for int16
// 32767 in place of 127.
struct QuantizeArgs {
  const float* x;
  void* out;  // Int8Block or Int16Block
  int64_t step;
  int32_t num_blocks;
  int32_t zero;   // of the weights' codes
  int32_t group;  // 32 or 16
};

// out[t * out_stride + r] = sum over blocks [block_begin, block_end) of the group's row r times
// token t (+ bias[r]).
struct QuantTile {
  const uint8_t* group;
  const void* x;  // Int8Block or Int16Block of (block_begin, token 0); that of (b, t) is at
                  // (b - block_begin) * num_tokens + t
  int32_t block_begin;
  int32_t block_end;
  int32_t num_tokens;  // 1 .. kQuantTokens
  int32_t num_rows;    // 1 .. 16: rows of the group to write
  const float* bias;   // null: none
  float* out;
  int64_t out_stride;
};

// out[t * out_stride + 16 g + r] = sum over `steps` of group g's row r times token t (+ bias[16 g +
// r]).
struct DenseTile {
  const uint8_t* weights;  // of group 0 at the first step
  int64_t group_bytes;     // from one group to the next
  const void* x;           // float32, or bfloat16 for kBFloat16 if the table has round_bfloat16
  int64_t x_stride;        // elements
  int64_t steps;           // columns; pairs of columns for kBFloat16
  int32_t num_tokens;      // 1 .. kDenseTokens
  int32_t num_groups;      // 1 .. kDenseGroups
  int32_t num_rows;        // rows to write, in all groups
  const float* bias;
  float* out;
  int64_t out_stride;
};

struct LinearKernels {
  const char* name;
  void (*quantize[kNumActivations])(const QuantizeArgs&);
  void (*quant[kNumActivations][kNumQuantForms])(const QuantTile&);  // by Form
  void (*dense_float)(const DenseTile&);
  void (*dense_half)(const DenseTile&);
  void (*dense_bfloat16)(const DenseTile&);
  // Rounds to bfloat16, to nearest even, for dense_bfloat16; null if that takes float32.
  void (*round_bfloat16)(const float* x, int64_t count, uint16_t* out);
};

extern const LinearKernels kScalarKernels;
extern const LinearKernels kAvx2Kernels;    // AVX2, FMA, F16C
extern const LinearKernels kAvx512Kernels;  // AVX-512 F, BW, DQ, VL, VNNI

// AVX-512 BF16's replacements for two entries of kAvx512Kernels.
void Avx512Bf16Dense(const DenseTile& tile);
void Avx512Bf16Round(const float* x, int64_t count, uint16_t* out);

}  // namespace penstock::kernels::cpu
