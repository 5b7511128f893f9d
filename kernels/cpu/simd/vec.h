// Sixteen float32 lanes: the same operations in the same order on every instruction set (SSE2,
// which every x86-64 has; AVX2 + FMA + F16C; AVX-512). Loops over it have no scalar tail: a short
// end is a masked vector, so a value's bits don't depend on where in the row it stands. AVX2 and
// AVX-512 give equal bits; SSE2 rounds a multiply-add twice.
//
// Included by simd/*.cc alone, which are compiled once for each instruction set into namespace
// cpu::PENSTOCK_ISA. Those files use nothing inline of the standard library: the linker would be
// free to keep the copy made of instructions that the machine lacks.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "kernels/cpu/simd/kernels.h"

#define PENSTOCK_INLINE inline __attribute__((always_inline))

namespace penstock::kernels::cpu::PENSTOCK_ISA {

constexpr int kLanes = 16;

#if defined(__AVX512F__)

struct Vec {
  __m512 v;
};
using Mask = __mmask16;

PENSTOCK_INLINE Mask FirstLanes(int n) { return static_cast<Mask>((1u << n) - 1); }
PENSTOCK_INLINE Vec Set(float x) { return {_mm512_set1_ps(x)}; }
PENSTOCK_INLINE Vec Load(const float* p) { return {_mm512_loadu_ps(p)}; }
// The first n lanes, the others 0.
PENSTOCK_INLINE Vec LoadN(const float* p, int n) {
  return {_mm512_maskz_loadu_ps(FirstLanes(n), p)};
}
PENSTOCK_INLINE Vec Load(const Half* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
PENSTOCK_INLINE Vec Load(const BFloat* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
PENSTOCK_INLINE void Store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
PENSTOCK_INLINE void StoreN(float* p, Vec a, int n) {
  _mm512_mask_storeu_ps(p, FirstLanes(n), a.v);
}
PENSTOCK_INLINE void Store(Half* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
PENSTOCK_INLINE Vec Add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
PENSTOCK_INLINE Vec Sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
PENSTOCK_INLINE Vec Mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
PENSTOCK_INLINE Vec Div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
// a * b + c
PENSTOCK_INLINE Vec Fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// Max and Min give b where either is NaN, as the instructions do.
PENSTOCK_INLINE Vec Max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
PENSTOCK_INLINE Vec Min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
PENSTOCK_INLINE Vec Round(Vec a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// False where either is NaN.
PENSTOCK_INLINE Mask Greater(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
PENSTOCK_INLINE uint32_t Bits(Mask m) { return m; }
// a in the lanes of m, b in the others.
PENSTOCK_INLINE Vec Select(Mask m, Vec a, Vec b) { return {_mm512_mask_blend_ps(m, b.v, a.v)}; }
// a * 2^n for whole n in [-126, 127].
PENSTOCK_INLINE Vec ScaleByPowerOf2(Vec a, Vec n) {
  const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_mul_ps(a.v, _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23)))};
}

#elif defined(__AVX2__)

struct Vec {
  __m256 lo, hi;
};
struct Mask {
  __m256 lo, hi;
};

PENSTOCK_INLINE Mask FirstLanes(int n) {
  const __m256i count = _mm256_set1_epi32(n);
  const __m256i lower = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i upper = _mm256_add_epi32(lower, _mm256_set1_epi32(8));
  return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(count, lower)),
          _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, upper))};
}
PENSTOCK_INLINE Vec Set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
PENSTOCK_INLINE Vec Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
PENSTOCK_INLINE Vec LoadN(const float* p, int n) {
  const Mask m = FirstLanes(n);
  return {_mm256_maskload_ps(p, _mm256_castps_si256(m.lo)),
          _mm256_maskload_ps(p + 8, _mm256_castps_si256(m.hi))};
}
PENSTOCK_INLINE Vec Load(const Half* p) {
  const auto* bits = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(bits)), _mm256_cvtph_ps(_mm_loadu_si128(bits + 1))};
}
PENSTOCK_INLINE __m256 WidenBFloat(__m128i bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
PENSTOCK_INLINE Vec Load(const BFloat* p) {
  const auto* bits = reinterpret_cast<const __m128i*>(p);
  return {WidenBFloat(_mm_loadu_si128(bits)), WidenBFloat(_mm_loadu_si128(bits + 1))};
}
PENSTOCK_INLINE void Store(float* p, Vec a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
PENSTOCK_INLINE void StoreN(float* p, Vec a, int n) {
  const Mask m = FirstLanes(n);
  _mm256_maskstore_ps(p, _mm256_castps_si256(m.lo), a.lo);
  _mm256_maskstore_ps(p + 8, _mm256_castps_si256(m.hi), a.hi);
}
PENSTOCK_INLINE void Store(Half* p, Vec a) {
  auto* bits = reinterpret_cast<__m128i*>(p);
  _mm_storeu_si128(bits, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(bits + 1, _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}
PENSTOCK_INLINE Vec Add(Vec a, Vec b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
PENSTOCK_INLINE Vec Sub(Vec a, Vec b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
PENSTOCK_INLINE Vec Mul(Vec a, Vec b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
PENSTOCK_INLINE Vec Div(Vec a, Vec b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
PENSTOCK_INLINE Vec Fma(Vec a, Vec b, Vec c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
PENSTOCK_INLINE Vec Max(Vec a, Vec b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
PENSTOCK_INLINE Vec Min(Vec a, Vec b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
PENSTOCK_INLINE Vec Round(Vec a) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, kNearest), _mm256_round_ps(a.hi, kNearest)};
}
PENSTOCK_INLINE Mask Greater(Vec a, Vec b) {
  return {_mm256_cmp_ps(a.lo, b.lo, _CMP_GT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_GT_OQ)};
}
PENSTOCK_INLINE uint32_t Bits(Mask m) {
  return static_cast<uint32_t>(_mm256_movemask_ps(m.lo)) |
         static_cast<uint32_t>(_mm256_movemask_ps(m.hi)) << 8;
}
PENSTOCK_INLINE Vec Select(Mask m, Vec a, Vec b) {
  return {_mm256_blendv_ps(b.lo, a.lo, m.lo), _mm256_blendv_ps(b.hi, a.hi, m.hi)};
}
PENSTOCK_INLINE __m256 PowerOf2(__m256 n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
PENSTOCK_INLINE Vec ScaleByPowerOf2(Vec a, Vec n) {
  return Mul(a, {PowerOf2(n.lo), PowerOf2(n.hi)});
}

#else

// The compiler's own vectors, which it cuts to the machine's.
struct Vec {
  float v __attribute__((vector_size(64)));
};
using Ints = int32_t __attribute__((vector_size(64)));
struct Mask {
  Ints lanes;  // -1 or 0
};

template <typename F>
PENSTOCK_INLINE Vec ForLanes(F f) {
  float t[kLanes];
  for (int i = 0; i < kLanes; ++i) t[i] = f(i);
  Vec r;
  __builtin_memcpy(&r, t, sizeof(r));
  return r;
}
PENSTOCK_INLINE Mask FirstLanes(int n) {
  const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return {lanes < n};
}
PENSTOCK_INLINE Vec Set(float x) { return {x - Vec{}.v}; }
PENSTOCK_INLINE Vec Load(const float* p) {
  Vec r;
  __builtin_memcpy(&r, p, sizeof(r));
  return r;
}
PENSTOCK_INLINE Vec LoadN(const float* p, int n) {
  Vec r = {};
  __builtin_memcpy(&r, p, static_cast<size_t>(n) * sizeof(float));
  return r;
}
// Not inline: GCC 12 crashes when it vectorises conversions of _Float16.
[[gnu::noinline, maybe_unused]] static float Widen(Half x) {
  return static_cast<float>(__builtin_bit_cast(_Float16, x));
}
[[gnu::noinline, maybe_unused]] static Half NarrowToHalf(float x) {
  return __builtin_bit_cast(Half, static_cast<_Float16>(x));
}
PENSTOCK_INLINE Vec Load(const Half* p) {
  return ForLanes([&](int i) { return Widen(p[i]); });
}
PENSTOCK_INLINE Vec Load(const BFloat* p) {
  return ForLanes(
      [&](int i) { return __builtin_bit_cast(float, static_cast<uint32_t>(p[i].bits) << 16); });
}
PENSTOCK_INLINE void Store(float* p, Vec a) { __builtin_memcpy(p, &a, sizeof(a)); }
PENSTOCK_INLINE void StoreN(float* p, Vec a, int n) {
  __builtin_memcpy(p, &a, static_cast<size_t>(n) * sizeof(float));
}
PENSTOCK_INLINE void Store(Half* p, Vec a) {
  for (int i = 0; i < kLanes; ++i) p[i] = NarrowToHalf(a.v[i]);
}
PENSTOCK_INLINE Vec Add(Vec a, Vec b) { return {a.v + b.v}; }
PENSTOCK_INLINE Vec Sub(Vec a, Vec b) { return {a.v - b.v}; }
PENSTOCK_INLINE Vec Mul(Vec a, Vec b) { return {a.v * b.v}; }
PENSTOCK_INLINE Vec Div(Vec a, Vec b) { return {a.v / b.v}; }
PENSTOCK_INLINE Vec Fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
PENSTOCK_INLINE Vec Max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
PENSTOCK_INLINE Vec Min(Vec a, Vec b) { return {a.v < b.v ? a.v : b.v}; }
// Of numbers under 2^22: above 1.5 * 2^23 the fraction has no bits left.
PENSTOCK_INLINE Vec Round(Vec a) {
  const Vec big = Set(12582912.0f);
  return Sub(Add(a, big), big);
}
PENSTOCK_INLINE Mask Greater(Vec a, Vec b) { return {a.v > b.v}; }
PENSTOCK_INLINE uint32_t Bits(Mask m) {
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= (static_cast<uint32_t>(m.lanes[i]) & 1) << i;
  return bits;
}
PENSTOCK_INLINE Vec Select(Mask m, Vec a, Vec b) { return {m.lanes ? a.v : b.v}; }
PENSTOCK_INLINE Vec ScaleByPowerOf2(Vec a, Vec n) {
  const Ints exponent = (__builtin_convertvector(n.v, Ints) + 127) << 23;
  return Mul(a, __builtin_bit_cast(Vec, exponent));
}

#endif

// Lanes i and i + 8 are joined, then i and i + 4, i + 2, i + 1.
#if defined(__AVX2__)
#if defined(__AVX512F__)
PENSTOCK_INLINE __m256 Low(Vec a) { return _mm512_castps512_ps256(a.v); }
PENSTOCK_INLINE __m256 High(Vec a) { return _mm512_extractf32x8_ps(a.v, 1); }
#else
PENSTOCK_INLINE __m256 Low(Vec a) { return a.lo; }
PENSTOCK_INLINE __m256 High(Vec a) { return a.hi; }
#endif
PENSTOCK_INLINE float ReduceAdd(Vec a) {
  const __m256 eight = _mm256_add_ps(Low(a), High(a));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
PENSTOCK_INLINE float ReduceMax(Vec a) {
  const __m256 eight = _mm256_max_ps(Low(a), High(a));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
#else
PENSTOCK_INLINE float ReduceAdd(Vec a) {
  float t[kLanes];
  Store(t, a);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) t[i] += t[i + width];
  }
  return t[0];
}
PENSTOCK_INLINE float ReduceMax(Vec a) {
  float t[kLanes];
  Store(t, a);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) t[i] = t[i] > t[i + width] ? t[i] : t[i + width];
  }
  return t[0];
}
#endif

PENSTOCK_INLINE void Store(BFloat* p, Vec a) {
  float t[kLanes];
  Store(t, a);
  for (int i = 0; i < kLanes; ++i) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, t[i]);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    // Half to even: carries into the kept half exactly when it must.
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    p[i].bits = static_cast<uint16_t>(is_nan ? 0x7fc0 : rounded);
  }
}

// e^x within 1.1 ulp (tests/unit/kernels/simd_test.cc measures it); e^0 is exactly 1. x above 88
// counts as 88; results below the least normal number are 0; NaN stays NaN. Range reduction by a
// two-part ln 2 (Cody and Waite, 1980), then the minimax polynomial of Cephes' expf (Moshier).
PENSTOCK_INLINE Vec Exp(Vec x) {
  constexpr float kLeast = -87.336540f;  // ln of the least normal number
  const Vec bounded = Max(Set(kLeast), Min(Set(88.0f), x));
  const Vec n = Round(Mul(bounded, Set(1.44269504088896341f)));
  Vec r = Fma(n, Set(-0.693359375f), bounded);
  r = Fma(n, Set(2.12194440e-4f), r);
  Vec p = Set(1.9875691500e-4f);
  p = Fma(p, r, Set(1.3981999507e-3f));
  p = Fma(p, r, Set(8.3334519073e-3f));
  p = Fma(p, r, Set(4.1665795894e-2f));
  p = Fma(p, r, Set(1.6666665459e-1f));
  p = Fma(p, r, Set(5.0000001201e-1f));
  p = Add(Fma(p, Mul(r, r), r), Set(1.0f));
  return Select(Greater(Set(kLeast), x), Set(0.0f), ScaleByPowerOf2(p, n));
}

}  // namespace penstock::kernels::cpu::PENSTOCK_ISA
