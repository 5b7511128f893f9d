// The kernels in plain C++, for CPUs without AVX2 and as the reference of the others. Sums are of
// products rounded twice, since such CPUs have no fused multiply-add.
#include "kernels/cpu/linear_kernels.h"

namespace penstock::kernels::cpu {
namespace {

float HalfBits(const uint8_t* p) {
  uint16_t bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
  uint32_t widened = sign | ((magnitude << 13) + (112u << 23));
  float value;
  if (magnitude < 0x400) {
    value = static_cast<float>(magnitude) * 0x1p-24f;
    return sign != 0 ? -value : value;
  }
  if (magnitude >= 0x7c00) widened = sign | 0x7f800000 | (magnitude & 0x3ff) << 13;
  __builtin_memcpy(&value, &widened, sizeof(value));
  return value;
}

float FloatBits(const uint8_t* p) {
  float value;
  __builtin_memcpy(&value, p, sizeof(value));
  return value;
}

template <class Layout>
float Scale(const uint8_t* scales, int row) {
  return Layout::kHalfScales ? HalfBits(scales + 2 * row) : FloatBits(scales + 4 * row);
}

template <class Layout>
int Code(const uint8_t* codes, int row, int column) {
  const int quad = column / 4, byte = row * 4 + column % 4;
  if (Layout::kBits == 8) return codes[quad * 64 + byte];
  const int both = codes[quad % 4 * 64 + byte];
  return quad < 4 ? both & 15 : both >> 4;
}

// Where the q of a column lies among an Int16Block's.
constexpr int Place(int column) { return column / 4 * 4 + column % 2 * 2 + column % 4 / 2; }
int GetQ(const Int8Block& x, int column) {
  return reinterpret_cast<const int8_t*>(x.words)[column];
}
int GetQ(const Int16Block& x, int column) {
  int16_t q;
  __builtin_memcpy(&q, reinterpret_cast<const char*>(x.words) + 2 * Place(column), sizeof(q));
  return q;
}
void PutQ(Int8Block* x, int column, int value) {
  reinterpret_cast<int8_t*>(x->words)[column] = static_cast<int8_t>(value);
}
void PutQ(Int16Block* x, int column, int value) {
  const auto q = static_cast<int16_t>(value);
  __builtin_memcpy(reinterpret_cast<char*>(x->words) + 2 * Place(column), &q, sizeof(q));
}

template <class Layout, class Block>
float DotRow(const QuantTile& p, int row, int token) {
  constexpr int kScales = Layout::kScalesPerBlock;
  float sum = 0;
  for (int b = p.block_begin; b < p.block_end; ++b) {
    const uint8_t* codes = p.group + Layout::CodeOffset(b);
    const Block& x = static_cast<const Block*>(p.x)[(b - p.block_begin) * p.num_tokens + token];
    for (int s = 0; s < kScales; ++s) {
      int dot = Layout::kMinimum ? 0 : x.offset[s];
      for (int i = s * kBlock / kScales; i < (s + 1) * kBlock / kScales; ++i)
        dot += Code<Layout>(codes, row, i) * GetQ(x, i);
      const uint8_t* scales =
          p.group + Layout::ScaleOffset(b) + s * (Layout::kScaleBytes / kScales);
      sum += static_cast<float>(dot) * x.scale * Scale<Layout>(scales, row);
    }
    if (Layout::kMinimum) sum += Scale<Layout>(p.group + Layout::MinimumOffset(b), row) * x.sum;
  }
  return p.bias == nullptr ? sum : sum + p.bias[row];
}

template <class Layout, class Block>
void Tile(const QuantTile& p) {
  for (int t = 0; t < p.num_tokens; ++t) {
    for (int r = 0; r < p.num_rows; ++r)
      p.out[t * p.out_stride + r] = DotRow<Layout, Block>(p, r, t);
  }
}

template <class Block>
void Quantize(const QuantizeArgs& p) {
  constexpr float kLargest = Block::kLargest;
  auto* out = static_cast<Block*>(p.out);
  for (int b = 0; b < p.num_blocks; ++b, out += p.step) {
    const float* x = p.x + b * kBlock;
    float peak = 0;
    bool finite = true;
    for (int i = 0; i < kBlock; ++i) {
      const float magnitude = __builtin_fabsf(x[i]);
      if (magnitude > peak) peak = magnitude;
      finite = finite && __builtin_isfinite(magnitude);
    }
    const float inverse = finite && peak > 1e-30f ? kLargest / peak : 0.0f;
    int sums[2] = {0, 0};
    for (int i = 0; i < kBlock; ++i) {
      const int q = finite ? static_cast<int>(__builtin_lrintf(x[i] * inverse)) : 0;
      PutQ(out, i, q);
      sums[i / 16] += q;
    }
    out->scale = finite ? peak * (1.0f / kLargest) : __builtin_nanf("");
    out->sum = out->scale * static_cast<float>(sums[0] + sums[1]);
    out->offset[0] = -p.zero * (p.group == kBlock ? sums[0] + sums[1] : sums[0]);
    out->offset[1] = -p.zero * sums[1];
  }
}

// Weight of (row, column): kBytes bytes a weight, kColumns columns side by side.
float FloatWeight(const uint8_t* group, int64_t column, int row) {
  return FloatBits(group + (column * kGroupRows + row) * 4);
}
float HalfWeight(const uint8_t* group, int64_t column, int row) {
  return HalfBits(group + (column * kGroupRows + row) * 2);
}
float BFloat16Weight(const uint8_t* group, int64_t column, int row) {
  uint16_t bits;
  __builtin_memcpy(&bits, group + ((column / 2 * kGroupRows + row) * 2 + column % 2) * 2,
                   sizeof(bits));
  const uint32_t widened = static_cast<uint32_t>(bits) << 16;
  float value;
  __builtin_memcpy(&value, &widened, sizeof(value));
  return value;
}

template <float (*kWeight)(const uint8_t*, int64_t, int), int kColumns>
void Dense(const DenseTile& p) {
  for (int t = 0; t < p.num_tokens; ++t) {
    const float* x = static_cast<const float*>(p.x) + t * p.x_stride;
    for (int r = 0; r < p.num_rows; ++r) {
      const uint8_t* group = p.weights + r / kGroupRows * p.group_bytes;
      float sum = 0;
      for (int64_t k = 0; k < p.steps * kColumns; ++k)
        sum += kWeight(group, k, r % kGroupRows) * x[k];
      p.out[t * p.out_stride + r] = p.bias == nullptr ? sum : sum + p.bias[r];
    }
  }
}

}  // namespace

extern const LinearKernels kScalarKernels = {
    "scalar",
    {Quantize<Int8Block>, Quantize<Int16Block>},
    {{Tile<U4Half, Int8Block>, Tile<U4HalfMin, Int8Block>, Tile<U4FloatMin, Int8Block>,
      Tile<U8Half, Int8Block>, Tile<U8HalfMin, Int8Block>, Tile<U8FloatMin, Int8Block>,
      Tile<U8Float16, Int8Block>},
     {Tile<U4Half, Int16Block>, Tile<U4HalfMin, Int16Block>, Tile<U4FloatMin, Int16Block>,
      Tile<U8Half, Int16Block>, Tile<U8HalfMin, Int16Block>, Tile<U8FloatMin, Int16Block>,
      Tile<U8Float16, Int16Block>}},
    Dense<FloatWeight, 1>,
    Dense<HalfWeight, 1>,
    Dense<BFloat16Weight, 2>,
    nullptr,
};

}  // namespace penstock::kernels::cpu
