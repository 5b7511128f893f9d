// AVX2 with FMA and F16C: 8 rows a register, vpmaddubsw and vpmaddwd in place of vpdpbusd, vpmaddwd
// of vpdpwssd. Simple rather than tuned. The integer dot products are exact and the floating ones
// fused, so results are the same bits as AVX-512's.
#include <immintrin.h>

#include "kernels/cpu/linear_kernels.h"

namespace penstock::kernels::cpu {
namespace {

constexpr int kHalves = 2;  // registers of 8 rows in a group

const __m256i* Vector(const uint8_t* p) { return reinterpret_cast<const __m256i*>(p); }

template <bool kHalf>
__m256 LoadScales(const uint8_t* scales, int half) {
  if constexpr (kHalf) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales + 16 * half)));
  } else {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(scales + 32 * half));
  }
}

// Four codes a lane times four activations, summed into int32. Pairs must fit int16: up to 6-bit
// codes do (2 * 63 * 127); full 8-bit ones lose their zero (128) here and give their sign to the
// activation (2 * 128 * 127).
template <bool kWide>
__m256i DotQuad(__m256i dot, __m256i codes, const Int8Block& block, int j) {
  __m256i x = _mm256_set1_epi32(block.words[j]);
  if constexpr (kWide) {
    const __m256i w = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
    x = _mm256_sign_epi8(x, w);
    codes = _mm256_abs_epi8(w);
  }
  return _mm256_add_epi32(dot,
                          _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1)));
}

// With int16 a product fits int32 and pairs are summed there: codes keep their zero.
template <bool>
__m256i DotQuad(__m256i dot, __m256i codes, const Int16Block& block, int j) {
  const __m256i even = _mm256_and_si256(codes, _mm256_set1_epi16(255));
  const __m256i odd = _mm256_srli_epi16(codes, 8);
  const __m256i x0 = _mm256_set1_epi32(block.words[2 * j]);
  const __m256i x1 = _mm256_set1_epi32(block.words[2 * j + 1]);
  return _mm256_add_epi32(
      dot, _mm256_add_epi32(_mm256_madd_epi16(even, x0), _mm256_madd_epi16(odd, x1)));
}

template <class Layout, class Block>
void TileRow(const QuantTile& p, int token) {
  constexpr int kScales = Layout::kScalesPerBlock;
  constexpr bool kWide = Layout::kZero == 128 && Block::kLargest == 127;
  const __m256i low = _mm256_set1_epi8(15);
  __m256 sum[kHalves] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for (int64_t b = p.block_begin; b < p.block_end; ++b) {
    const uint8_t* codes = p.group + Layout::CodeOffset(b);
    const Block& x = static_cast<const Block*>(p.x)[(b - p.block_begin) * p.num_tokens + token];
    const __m256 x_scale = _mm256_set1_ps(x.scale);
    for (int h = 0; h < kHalves; ++h) {
      for (int s = 0; s < kScales; ++s) {
        __m256i dot = _mm256_set1_epi32(Layout::kMinimum || kWide ? 0 : x.offset[s]);
        if constexpr (Layout::kBits == 4) {
          for (int j = 0; j < 4; ++j) {
            const __m256i both = _mm256_loadu_si256(Vector(codes + 64 * j + 32 * h));
            dot = DotQuad<false>(dot, _mm256_and_si256(both, low), x, j);
            dot = DotQuad<false>(dot, _mm256_and_si256(_mm256_srli_epi16(both, 4), low), x, j + 4);
          }
        } else {
          constexpr int kQuads = kBlock / 4 / kScales;
          for (int j = s * kQuads; j < (s + 1) * kQuads; ++j) {
            dot = DotQuad<kWide>(dot, _mm256_loadu_si256(Vector(codes + 64 * j + 32 * h)), x, j);
          }
        }
        const uint8_t* scales =
            p.group + Layout::ScaleOffset(b) + s * (Layout::kScaleBytes / kScales);
        const __m256 part = _mm256_mul_ps(_mm256_cvtepi32_ps(dot), x_scale);
        sum[h] = _mm256_fmadd_ps(part, LoadScales<Layout::kHalfScales>(scales, h), sum[h]);
      }
      if constexpr (Layout::kMinimum) {
        const __m256 minimum =
            LoadScales<Layout::kHalfScales>(p.group + Layout::MinimumOffset(b), h);
        sum[h] = _mm256_fmadd_ps(minimum, _mm256_set1_ps(x.sum), sum[h]);
      }
    }
  }
  float row[kGroupRows];
  for (int h = 0; h < kHalves; ++h) _mm256_storeu_ps(row + 8 * h, sum[h]);
  float* out = p.out + token * p.out_stride;
  for (int r = 0; r < p.num_rows; ++r) out[r] = p.bias == nullptr ? row[r] : row[r] + p.bias[r];
}

template <class Layout, class Block>
void Tile(const QuantTile& p) {
  for (int t = 0; t < p.num_tokens; ++t) TileRow<Layout, Block>(p, t);
}

// The 8 values at `x` times `factor` as integers; zeros if that is zero, whatever x is.
__m256i Scaled(const float* x, __m256 factor) {
  const __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), factor));
  return _mm256_andnot_si256(
      _mm256_castps_si256(_mm256_cmp_ps(factor, _mm256_setzero_ps(), _CMP_EQ_OQ)), q);
}

int32_t SumLanes(__m256i v) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

// Writes 16 q, in the order of the columns, to the block's half.
void StoreHalf(__m256i words, int half, Int8Block* out) {
  const __m128i bytes =
      _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out->words + 4 * half), bytes);
}
void StoreHalf(__m256i words, int half, Int16Block* out) {
  words = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(words, 0xd8), 0xd8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out->words + 8 * half), words);
}

template <class Block>
void Quantize(const QuantizeArgs& p) {
  constexpr float kLargest = Block::kLargest;
  auto* out = static_cast<Block*>(p.out);
  for (int b = 0; b < p.num_blocks; ++b, out += p.step) {
    const float* x = p.x + b * kBlock;
    __m256i largest = _mm256_setzero_si256();  // magnitudes compare as integers, NaN above infinity
    for (int i = 0; i < kBlock; i += 8) {
      const __m256i bits = _mm256_castps_si256(_mm256_loadu_ps(x + i));
      largest = _mm256_max_epu32(largest, _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)));
    }
    __m128i top =
        _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
    top = _mm_max_epu32(top, _mm_shuffle_epi32(top, 0x4e));
    top = _mm_max_epu32(top, _mm_shuffle_epi32(top, 0xb1));
    const float peak = _mm_cvtss_f32(_mm_castsi128_ps(top));
    const bool finite = _mm_cvtsi128_si32(top) < 0x7f800000;
    const __m256 factor = _mm256_set1_ps(finite && peak > 1e-30f ? kLargest / peak : 0.0f);
    int32_t sums[2];
    for (int h = 0; h < 2; ++h) {
      const __m256i q0 = Scaled(x + 16 * h, factor), q1 = Scaled(x + 16 * h + 8, factor);
      sums[h] = SumLanes(_mm256_add_epi32(q0, q1));
      StoreHalf(_mm256_permute4x64_epi64(_mm256_packs_epi32(q0, q1), 0xd8), h, out);
    }
    out->scale = finite ? peak * (1.0f / kLargest) : __builtin_nanf("");
    out->sum = out->scale * static_cast<float>(sums[0] + sums[1]);
    out->offset[0] = -p.zero * (p.group == kBlock ? sums[0] + sums[1] : sums[0]);
    out->offset[1] = -p.zero * sums[1];
  }
}

struct FloatStep {
  static constexpr int kBytes = 64;
  static constexpr int kColumns = 1;
  static __m256 MultiplyAdd(__m256 sum, const uint8_t* w, int half, const float* x) {
    const __m256 row = _mm256_loadu_ps(reinterpret_cast<const float*>(w + 32 * half));
    return _mm256_fmadd_ps(row, _mm256_set1_ps(*x), sum);
  }
};

struct HalfStep {
  static constexpr int kBytes = 32;
  static constexpr int kColumns = 1;
  static __m256 MultiplyAdd(__m256 sum, const uint8_t* w, int half, const float* x) {
    return _mm256_fmadd_ps(LoadScales<true>(w, half), _mm256_set1_ps(*x), sum);
  }
};

struct WidenedPairStep {
  static constexpr int kBytes = 64;
  static constexpr int kColumns = 2;
  static __m256 MultiplyAdd(__m256 sum, const uint8_t* w, int half, const float* x) {
    const __m256i pair = _mm256_loadu_si256(Vector(w + 32 * half));
    const __m256i odd = _mm256_and_si256(pair, _mm256_set1_epi32(static_cast<int>(0xffff0000)));
    sum = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(pair, 16)), _mm256_set1_ps(x[0]),
                          sum);
    return _mm256_fmadd_ps(_mm256_castsi256_ps(odd), _mm256_set1_ps(x[1]), sum);
  }
};

// One group and up to 6 tokens: 12 accumulators.
template <class Step, int kTokens>
void DenseGroup(const DenseTile& p, int g) {
  const auto* x = static_cast<const float*>(p.x);
  const uint8_t* w = p.weights + g * p.group_bytes;
  __m256 sum[kTokens][kHalves];
  for (int t = 0; t < kTokens; ++t) sum[t][0] = sum[t][1] = _mm256_setzero_ps();
  for (int64_t k = 0; k < p.steps; ++k, w += Step::kBytes, x += Step::kColumns) {
    for (int t = 0; t < kTokens; ++t) {
      for (int h = 0; h < kHalves; ++h)
        sum[t][h] = Step::MultiplyAdd(sum[t][h], w, h, x + t * p.x_stride);
    }
  }
  const int rows = p.num_rows - g * kGroupRows;
  for (int t = 0; t < kTokens; ++t) {
    float row[kGroupRows];
    for (int h = 0; h < kHalves; ++h) _mm256_storeu_ps(row + 8 * h, sum[t][h]);
    float* out = p.out + t * p.out_stride + g * kGroupRows;
    const float* bias = p.bias == nullptr ? nullptr : p.bias + g * kGroupRows;
    for (int r = 0; r < (rows < kGroupRows ? rows : kGroupRows); ++r) {
      out[r] = bias == nullptr ? row[r] : row[r] + bias[r];
    }
  }
}

template <class Step>
void Dense(const DenseTile& p) {
  for (int g = 0; g < p.num_groups; ++g) {
    switch (p.num_tokens) {
      case 1:
        DenseGroup<Step, 1>(p, g);
        break;
      case 2:
        DenseGroup<Step, 2>(p, g);
        break;
      case 3:
        DenseGroup<Step, 3>(p, g);
        break;
      case 4:
        DenseGroup<Step, 4>(p, g);
        break;
      case 5:
        DenseGroup<Step, 5>(p, g);
        break;
      default:
        DenseGroup<Step, 6>(p, g);
        break;
    }
  }
}

}  // namespace

extern const LinearKernels kAvx2Kernels = {
    "avx2",
    {Quantize<Int8Block>, Quantize<Int16Block>},
    {{Tile<U4Half, Int8Block>, Tile<U4HalfMin, Int8Block>, Tile<U4FloatMin, Int8Block>,
      Tile<U8Half, Int8Block>, Tile<U8HalfMin, Int8Block>, Tile<U8FloatMin, Int8Block>,
      Tile<U8Float16, Int8Block>},
     {Tile<U4Half, Int16Block>, Tile<U4HalfMin, Int16Block>, Tile<U4FloatMin, Int16Block>,
      Tile<U8Half, Int16Block>, Tile<U8HalfMin, Int16Block>, Tile<U8FloatMin, Int16Block>,
      Tile<U8Float16, Int16Block>}},
    Dense<FloatStep>,
    Dense<HalfStep>,
    Dense<WidenedPairStep>,
    nullptr,
};

}  // namespace penstock::kernels::cpu
