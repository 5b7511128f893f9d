#include "kernels/cpu/isa.h"

#include <cpuid.h>

namespace penstock::kernels::cpu {
namespace {

// __builtin_cpu_supports doesn't know this one in every compiler.
bool HasF16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

}  // namespace

std::string_view IsaName(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kSse2:
      break;
  }
  return "sse2";
}

std::vector<Isa> AvailableIsas() {
  std::vector<Isa> isas = {Isa::kSse2};
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HasF16c() &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  if (!avx2) return isas;
  isas.push_back(Isa::kAvx2);
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) isas.push_back(Isa::kAvx512);
  return isas;
}

Isa BestIsa() { return AvailableIsas().back(); }

const Kernels& KernelsFor(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return avx512::kKernels;
    case Isa::kAvx2:
      return avx2::kKernels;
    case Isa::kSse2:
      break;
  }
  return sse2::kKernels;
}

}  // namespace penstock::kernels::cpu
