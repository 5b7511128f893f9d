// Passes over a row of logits for the sampler.
#include "kernels/cpu/simd/loops.h"
#include "kernels/cpu/simd/vec.h"

namespace penstock::kernels::cpu::PENSTOCK_ISA {
namespace {

constexpr float kInfinity = __builtin_inff();

// The n lanes at p, the others `fill`.
PENSTOCK_INLINE Vec LoadOr(const float* p, int n, float fill) {
  return n == kLanes ? Load(p) : Select(FirstLanes(n), LoadN(p, n), Set(fill));
}

PENSTOCK_INLINE int LanesAt(int64_t i, int64_t n) {
  return n - i < kLanes ? static_cast<int>(n - i) : kLanes;
}

}  // namespace

int64_t ArgMax(const float* x, int64_t n, bool all_finite) {
  // Block by block, so that the winner is looked up in one block alone; the first of equals wins.
  constexpr int64_t kBlock = 1024;
  float best = -kInfinity;
  int64_t best_block = 0;
  Vec odd = Set(0);  // stays 0 as long as every x is finite
  for (int64_t b = 0; b < n; b += kBlock) {
    const int64_t end = b + kBlock < n ? b + kBlock : n;
    Vec most[2] = {Set(-kInfinity), Set(-kInfinity)};
    for (int64_t i = b; i < end; i += 2 * kLanes) {
      const Vec a = LoadOr(x + i, LanesAt(i, end), -__FLT_MAX__);
      most[0] = Max(most[0], a);
      odd = Fma(a, Set(0), odd);
      if (i + kLanes >= end) break;
      const Vec c = LoadOr(x + i + kLanes, LanesAt(i + kLanes, end), -__FLT_MAX__);
      most[1] = Max(most[1], c);
      odd = Fma(c, Set(0), odd);
    }
    const float block_best = ReduceMax(Max(most[0], most[1]));
    if (block_best > best) {
      best = block_best;
      best_block = b;
    }
  }
  const float oddness = ReduceAdd(odd);
  if (all_finite && oddness != oddness) return -1;
  int64_t i = best_block;
  while (i + 1 < n && x[i] != best) ++i;
  return i;
}

double ExpSum(const float* x, int64_t n, float shift, float factor, float floor, float* out,
              double* block_sums) {
  const auto weight = [=](Vec y) __attribute__((always_inline)) {
    const Vec e = Exp(Mul(Sub(y, Set(shift)), Set(factor)));
    return Select(Greater(Set(floor), e), Set(0), e);
  };
  double total = 0;
  for (int64_t b = 0; b * kSumBlock < n; ++b) {
    int64_t i = b * kSumBlock;
    const int64_t end = i + kSumBlock < n ? i + kSumBlock : n;
    Vec even = Set(0);
    Vec odd = Set(0);
    for (; i + 2 * kLanes <= end; i += 2 * kLanes) {
      const Vec e = weight(Load(x + i));
      const Vec f = weight(Load(x + i + kLanes));
      Store(out + i, e);
      Store(out + i + kLanes, f);
      even = Add(even, e);
      odd = Add(odd, f);
    }
    for (; i < end; i += kLanes) {
      const int lanes = LanesAt(i, end);
      const Vec e = weight(LoadOr(x + i, lanes, -kInfinity));
      StoreN(out + i, e, lanes);
      even = Add(even, e);
    }
    block_sums[b] = ReduceAdd(Add(even, odd));
    total += block_sums[b];
  }
  return total;
}

int64_t CountAbove(const float* x, int64_t n, float value, double* sum) {
  int64_t count = 0;
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kSumBlock) {
    const int64_t end = begin + kSumBlock < n ? begin + kSumBlock : n;
    Vec block = Set(0);
    for (int64_t i = begin; i < end; i += kLanes) {
      const Vec y = LoadOr(x + i, LanesAt(i, end), -kInfinity);
      const Mask above = Greater(y, Set(value));
      count += __builtin_popcount(Bits(above));
      block = Add(block, Select(above, y, Set(0)));
    }
    total += ReduceAdd(block);
  }
  if (sum != nullptr) *sum = total;
  return count;
}

int64_t NextBetween(const float* x, int64_t begin, int64_t n, float low, float high) {
  for (int64_t i = begin; i < n; i += kLanes) {
    const Vec y = LoadOr(x + i, LanesAt(i, n), -kInfinity);
    const uint32_t bits = Bits(Greater(y, Set(low))) & ~Bits(Greater(y, Set(high)));
    if (bits != 0) return i + __builtin_ctz(bits);
  }
  return n;
}

double DropBelow(float* x, int64_t n, float floor, double* block_sums) {
  double total = 0;
  for (int64_t b = 0; b * kSumBlock < n; ++b) {
    const int64_t begin = b * kSumBlock;
    const int64_t end = begin + kSumBlock < n ? begin + kSumBlock : n;
    Vec sum = Set(0);
    for (int64_t i = begin; i < end; i += kLanes) {
      const int lanes = LanesAt(i, end);
      Vec y = LoadN(x + i, lanes);
      y = Select(Greater(Set(floor), y), Set(0), y);
      StoreN(x + i, y, lanes);
      sum = Add(sum, y);
    }
    block_sums[b] = ReduceAdd(sum);
    total += block_sums[b];
  }
  return total;
}

}  // namespace penstock::kernels::cpu::PENSTOCK_ISA
