// AVX-512 with VNNI: vpdpbusd multiplies 16 rows x 4 columns of unsigned codes by int8 activations,
// vpdpwssd 16 x 2 of codes widened to 16 bits by int16 ones.
#include "kernels/cpu/linear_avx512_dense.h"

namespace penstock::kernels::cpu {
namespace {

// Bytes ahead of the codes in use that are asked of memory, which small batches are bound by.
// Groups and matrices follow each other there, so this reaches across their ends. Measured on Zen
// 4: 8 KiB beats 2, 4 and 16; without it batches of 8 are 20% slower.
constexpr int kPrefetch = 8192;

template <bool kHalf>
__m512 LoadScales(const uint8_t* p) {
  if constexpr (kHalf) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  } else {
    return _mm512_loadu_ps(p);
  }
}

// dot[t] += codes . the four activations from column 4j on of token t
template <int kTokens>
inline __attribute__((always_inline)) void DotQuad(__m512i codes, const Int8Block* x, int j,
                                                   __m512i* dot) {
  for (int t = 0; t < kTokens; ++t) {
    dot[t] = _mm512_dpbusd_epi32(dot[t], codes, _mm512_set1_epi32(x[t].words[j]));
  }
}

template <int kTokens>
inline __attribute__((always_inline)) void DotQuad(__m512i codes, const Int16Block* x, int j,
                                                   __m512i* dot) {
  const __m512i even = _mm512_and_si512(codes, _mm512_set1_epi16(255));
  const __m512i odd = _mm512_srli_epi16(codes, 8);
  for (int t = 0; t < kTokens; ++t) {
    dot[t] = _mm512_dpwssd_epi32(dot[t], even, _mm512_set1_epi32(x[t].words[2 * j]));
    dot[t] = _mm512_dpwssd_epi32(dot[t], odd, _mm512_set1_epi32(x[t].words[2 * j + 1]));
  }
}

template <class Layout, class Block, int kTokens>
void Tile(const QuantTile& p) {
  const __m512i low = _mm512_set1_epi8(15);
  const auto* x = static_cast<const Block*>(p.x);
  __m512 sum[kTokens];
  for (int t = 0; t < kTokens; ++t) sum[t] = _mm512_setzero_ps();
  for (int64_t b = p.block_begin; b < p.block_end; ++b, x += kTokens) {
    const uint8_t* codes = p.group + Layout::CodeOffset(b);
    const uint8_t* scales = p.group + Layout::ScaleOffset(b);
    for (int i = 0; i < Layout::kUnitBytes / Layout::kUnitBlocks; i += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(codes + kPrefetch + i), _MM_HINT_T0);
    }
    constexpr int kScales = Layout::kScalesPerBlock;
    constexpr int kQuads = kBlock / 4 / kScales;  // that share a scale
    for (int s = 0; s < kScales; ++s) {
      __m512i dot[kTokens];
      for (int t = 0; t < kTokens; ++t) {
        dot[t] = Layout::kMinimum ? _mm512_setzero_si512() : _mm512_set1_epi32(x[t].offset[s]);
      }
      if constexpr (Layout::kBits == 4) {
        for (int j = 0; j < 4; ++j) {
          const __m512i both = _mm512_loadu_si512(codes + 64 * j);
          DotQuad<kTokens>(_mm512_and_si512(both, low), x, j, dot);
          DotQuad<kTokens>(_mm512_and_si512(_mm512_srli_epi16(both, 4), low), x, j + 4, dot);
        }
      } else {
        for (int j = s * kQuads; j < (s + 1) * kQuads; ++j) {
          DotQuad<kTokens>(_mm512_loadu_si512(codes + 64 * j), x, j, dot);
        }
      }
      const __m512 scale =
          LoadScales<Layout::kHalfScales>(scales + s * (Layout::kScaleBytes / kScales));
      for (int t = 0; t < kTokens; ++t) {
        const __m512 part = _mm512_mul_ps(_mm512_cvtepi32_ps(dot[t]), _mm512_set1_ps(x[t].scale));
        sum[t] = _mm512_fmadd_ps(part, scale, sum[t]);
      }
    }
    if constexpr (Layout::kMinimum) {
      const __m512 minimum = LoadScales<Layout::kHalfScales>(p.group + Layout::MinimumOffset(b));
      for (int t = 0; t < kTokens; ++t) {
        sum[t] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(x[t].sum), sum[t]);
      }
    }
  }
  for (int t = 0; t < kTokens; ++t) StoreRow(sum[t], p.num_rows, p.bias, p.out + t * p.out_stride);
}

template <class Layout, class Block>
void TileByTokens(const QuantTile& p) {
  switch (p.num_tokens) {
    case 1:
      return Tile<Layout, Block, 1>(p);
    case 2:
      return Tile<Layout, Block, 2>(p);
    case 3:
      return Tile<Layout, Block, 3>(p);
    case 4:
      return Tile<Layout, Block, 4>(p);
    case 5:
      return Tile<Layout, Block, 5>(p);
    case 6:
      return Tile<Layout, Block, 6>(p);
    case 7:
      return Tile<Layout, Block, 7>(p);
    default:
      return Tile<Layout, Block, 8>(p);
  }
}

// Writes a block's q, as 32 integers in two vectors, and the sums of these to sums.
inline __attribute__((always_inline)) void Store(__m512i x0, __m512i x1, Int8Block* out,
                                                 int32_t* sums) {
  const __m256i q = _mm256_set_m128i(_mm512_cvtsepi32_epi8(x1), _mm512_cvtsepi32_epi8(x0));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out->words), q);
  // 4 partial sums for each half
  __m256i sum = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), q);
  sum = _mm256_add_epi32(sum, _mm256_shuffle_epi32(sum, 0x4e));
  sum = _mm256_add_epi32(sum, _mm256_shuffle_epi32(sum, 0xb1));
  sums[0] = _mm256_extract_epi32(sum, 0);
  sums[1] = _mm256_extract_epi32(sum, 4);
}

inline __attribute__((always_inline)) void Store(__m512i x0, __m512i x1, Int16Block* out,
                                                 int32_t* sums) {
  __m512i q = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtsepi32_epi16(x0)),
                                 _mm512_cvtsepi32_epi16(x1), 1);
  q = _mm512_shufflehi_epi16(_mm512_shufflelo_epi16(q, 0xd8), 0xd8);
  _mm512_storeu_si512(out->words, q);
  sums[0] = _mm512_reduce_add_epi32(x0);
  sums[1] = _mm512_reduce_add_epi32(x1);
}

template <class Block>
void Quantize(const QuantizeArgs& p) {
  const __m512i magnitude_mask = _mm512_set1_epi32(0x7fffffff);
  constexpr float kLargest = Block::kLargest;
  auto* out = static_cast<Block*>(p.out);
  for (int b = 0; b < p.num_blocks; ++b, out += p.step) {
    const __m512 x0 = _mm512_loadu_ps(p.x + b * kBlock);
    const __m512 x1 = _mm512_loadu_ps(p.x + b * kBlock + 16);
    // Magnitudes compare as integers, NaN above infinity above all numbers.
    const __m512i largest =
        _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(x0), magnitude_mask),
                         _mm512_and_si512(_mm512_castps_si512(x1), magnitude_mask));
    const uint32_t bits = _mm512_reduce_max_epu32(largest);
    const float peak = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int>(bits))));
    const bool finite = bits < 0x7f800000u;
    // Below 1e-30 the inverse could overflow: such a block counts as zeros.
    const float inverse = finite && peak > 1e-30f ? kLargest / peak : 0.0f;
    const __m512 factor = _mm512_set1_ps(inverse);
    int32_t sums[2];
    // Infinity times zero would be a NaN, whose integer overflows the sums.
    const __mmask16 keep = finite ? 0xffff : 0;
    Store(_mm512_cvtps_epi32(_mm512_maskz_mul_ps(keep, x0, factor)),
          _mm512_cvtps_epi32(_mm512_maskz_mul_ps(keep, x1, factor)), out, sums);
    const float scale = finite ? peak * (1.0f / kLargest) : __builtin_nanf("");
    out->scale = scale;
    out->sum = scale * static_cast<float>(sums[0] + sums[1]);
    out->offset[0] = -p.zero * (p.group == kBlock ? sums[0] + sums[1] : sums[0]);
    out->offset[1] = -p.zero * sums[1];
  }
}

struct FloatStep {
  using Element = float;
  using Vector = __m512;
  static constexpr int kBytes = 64;
  static constexpr int kColumns = 1;
  static Vector Load(const uint8_t* p) { return _mm512_loadu_ps(p); }
  static __m512 MultiplyAdd(__m512 sum, Vector w, const float* x) {
    return _mm512_fmadd_ps(w, _mm512_set1_ps(*x), sum);
  }
};

struct HalfStep : FloatStep {
  static constexpr int kBytes = 32;
  static Vector Load(const uint8_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
};

// Without BF16 instructions: pairs of bfloat16 weights widened, float32 activations.
struct WidenedPairStep {
  using Element = float;
  using Vector = __m512i;
  static constexpr int kBytes = 64;
  static constexpr int kColumns = 2;
  static Vector Load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static __m512 MultiplyAdd(__m512 sum, Vector w, const float* x) {
    const __m512i odd = _mm512_and_si512(w, _mm512_set1_epi32(static_cast<int>(0xffff0000)));
    sum = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(w, 16)), _mm512_set1_ps(x[0]), sum);
    return _mm512_fmadd_ps(_mm512_castsi512_ps(odd), _mm512_set1_ps(x[1]), sum);
  }
};

}  // namespace

extern const LinearKernels kAvx512Kernels = {
    "avx512",
    {Quantize<Int8Block>, Quantize<Int16Block>},
    {{TileByTokens<U4Half, Int8Block>, TileByTokens<U4HalfMin, Int8Block>,
      TileByTokens<U4FloatMin, Int8Block>, TileByTokens<U8Half, Int8Block>,
      TileByTokens<U8HalfMin, Int8Block>, TileByTokens<U8FloatMin, Int8Block>,
      TileByTokens<U8Float16, Int8Block>},
     {TileByTokens<U4Half, Int16Block>, TileByTokens<U4HalfMin, Int16Block>,
      TileByTokens<U4FloatMin, Int16Block>, TileByTokens<U8Half, Int16Block>,
      TileByTokens<U8HalfMin, Int16Block>, TileByTokens<U8FloatMin, Int16Block>,
      TileByTokens<U8Float16, Int16Block>}},
    DenseTileByTokens<FloatStep>,
    DenseTileByTokens<HalfStep>,
    DenseTileByTokens<WidenedPairStep>,
    nullptr,
};

}  // namespace penstock::kernels::cpu
