#include "kernels/cpu/simd/loops.h"
#include "kernels/cpu/simd/vec.h"

namespace penstock::kernels::cpu::PENSTOCK_ISA {
namespace {

// Adds the segments at offset i to the residual and returns it.
PENSTOCK_INLINE Vec AddedResidual(const float* x, int64_t segment_stride, int num_segments,
                                  float* residual, int64_t i, int n) {
  Vec r = LoadN(residual + i, n);
  if (x == nullptr) return r;
  Vec sum = LoadN(x + i, n);
  for (int s = 1; s < num_segments; ++s) sum = Add(sum, LoadN(x + s * segment_stride + i, n));
  r = Add(r, sum);
  StoreN(residual + i, r, n);
  return r;
}

}  // namespace

void AddRmsNormRow(const float* x, int64_t segment_stride, int num_segments, float* residual,
                   const float* weight, float* out, int64_t n, float epsilon) {
  // Four sums, since one would wait for itself.
  Vec squares[4] = {Set(0), Set(0), Set(0), Set(0)};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) {
      const Vec r =
          AddedResidual(x, segment_stride, num_segments, residual, i + j * kLanes, kLanes);
      squares[j] = Fma(r, r, squares[j]);
    }
  }
  for (; i < n; i += kLanes) {
    const int lanes = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    const Vec r = AddedResidual(x, segment_stride, num_segments, residual, i, lanes);
    squares[0] = Fma(r, r, squares[0]);
  }
  if (out == nullptr) return;
  const float sum = ReduceAdd(Add(Add(squares[0], squares[1]), Add(squares[2], squares[3])));
  const Vec inverse = Set(1.0f / __builtin_sqrtf(sum / static_cast<float>(n) + epsilon));
  for (i = 0; i < n; i += kLanes) {
    const int lanes = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    const Vec normal = Mul(LoadN(residual + i, lanes), inverse);
    StoreN(out + i, Mul(normal, LoadN(weight + i, lanes)), lanes);
  }
}

}  // namespace penstock::kernels::cpu::PENSTOCK_ISA
