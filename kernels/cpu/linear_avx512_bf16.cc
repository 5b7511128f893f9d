// AVX-512 with BF16: vdpbf16ps multiplies 16 rows x 2 columns. The quantised kernels are those of
// linear_avx512.cc.
#include "kernels/cpu/linear_avx512_dense.h"

namespace penstock::kernels::cpu {
namespace {

struct BFloat16Step {
  using Element = uint16_t;
  using Vector = __m512bh;
  static constexpr int kBytes = 64;
  static constexpr int kColumns = 2;
  static Vector Load(const uint8_t* p) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p)); }
  static __m512 MultiplyAdd(__m512 sum, Vector w, const uint16_t* x) {
    int pair;
    __builtin_memcpy(&pair, x, sizeof(pair));
    return _mm512_dpbf16_ps(sum, w, reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair)));
  }
};

}  // namespace

void Avx512Bf16Round(const float* x, int64_t count, uint16_t* out) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 mask = RowMask(count - i < 16 ? static_cast<int>(count - i) : 16);
    const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x + i));
    _mm256_mask_storeu_epi16(out + i, mask, reinterpret_cast<__m256i>(rounded));
  }
}

void Avx512Bf16Dense(const DenseTile& tile) { DenseTileByTokens<BFloat16Step>(tile); }

}  // namespace penstock::kernels::cpu
