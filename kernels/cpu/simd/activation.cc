#include "kernels/cpu/simd/loops.h"
#include "kernels/cpu/simd/vec.h"

namespace penstock::kernels::cpu::PENSTOCK_ISA {

void SiluMul(const float* gate, const float* up, float* out, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int lanes = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    const Vec g = LoadN(gate + i, lanes);
    const Vec silu = Div(g, Add(Set(1.0f), Exp(Sub(Set(0.0f), g))));
    StoreN(out + i, Mul(silu, LoadN(up + i, lanes)), lanes);
  }
}

void ExpRow(const float* x, float* out, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int lanes = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    StoreN(out + i, Exp(LoadN(x + i, lanes)), lanes);
  }
}

}  // namespace penstock::kernels::cpu::PENSTOCK_ISA
