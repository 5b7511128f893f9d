// The dense tile of AVX-512, shared by the files that are compiled for it. Include nowhere else.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/linear_kernels.h"

namespace penstock::kernels::cpu {
namespace {

inline __mmask16 RowMask(int rows) {
  return static_cast<__mmask16>(rows >= kGroupRows ? 0xffff : (1 << rows) - 1);
}

inline void StoreRow(__m512 value, int rows, const float* bias, float* out) {
  const __mmask16 mask = RowMask(rows);
  if (bias != nullptr) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, bias));
  _mm512_mask_storeu_ps(out, mask, value);
}

// `Step` is one step of a form: its bytes of weights and columns, the type of an activation, and
// the multiply-add. Every accumulator is one chain over the steps in order.
template <class Step, int kTokens, int kGroups>
void DenseTileOf(const DenseTile& p) {
  const auto* x = static_cast<const typename Step::Element*>(p.x);
  __m512 sum[kTokens][kGroups];
  for (int t = 0; t < kTokens; ++t) {
    for (int g = 0; g < kGroups; ++g) sum[t][g] = _mm512_setzero_ps();
  }
  const uint8_t* w = p.weights;
  for (int64_t k = 0; k < p.steps; ++k, w += Step::kBytes, x += Step::kColumns) {
    typename Step::Vector row[kGroups];
    for (int g = 0; g < kGroups; ++g) row[g] = Step::Load(w + g * p.group_bytes);
    for (int t = 0; t < kTokens; ++t) {
      for (int g = 0; g < kGroups; ++g) {
        sum[t][g] = Step::MultiplyAdd(sum[t][g], row[g], x + t * p.x_stride);
      }
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    for (int g = 0; g < kGroups; ++g) {
      StoreRow(sum[t][g], p.num_rows - g * kGroupRows,
               p.bias == nullptr ? nullptr : p.bias + g * kGroupRows,
               p.out + t * p.out_stride + g * kGroupRows);
    }
  }
}

template <class Step, int kTokens>
void DenseTileByGroups(const DenseTile& p) {
  switch (p.num_groups) {
    case 1:
      return DenseTileOf<Step, kTokens, 1>(p);
    case 2:
      return DenseTileOf<Step, kTokens, 2>(p);
    case 3:
      return DenseTileOf<Step, kTokens, 3>(p);
    default:
      return DenseTileOf<Step, kTokens, 4>(p);
  }
}

template <class Step>
void DenseTileByTokens(const DenseTile& p) {
  switch (p.num_tokens) {
    case 1:
      return DenseTileByGroups<Step, 1>(p);
    case 2:
      return DenseTileByGroups<Step, 2>(p);
    case 3:
      return DenseTileByGroups<Step, 3>(p);
    case 4:
      return DenseTileByGroups<Step, 4>(p);
    case 5:
      return DenseTileByGroups<Step, 5>(p);
    default:
      return DenseTileByGroups<Step, 6>(p);
  }
}

}  // namespace
}  // namespace penstock::kernels::cpu
