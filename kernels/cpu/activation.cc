#include "kernels/cpu/activation.h"

namespace penstock::kernels::cpu {

void GatedActivation(const Cpu& cpu, const GatedActivationParams& p) {
  const int64_t width = p.width;
  const int64_t size = p.num_tokens * width;
  const auto* x = static_cast<const float*>(p.x);
  auto* out = static_cast<float*>(p.out);
  ForEach(cpu, p.num_tokens, 2 * size, [&](int, int64_t t) {
    const float* gate = x + t * 2 * width;
    cpu.kernels->silu_mul(gate, gate + width, out + t * width, width);
  });
}

}  // namespace penstock::kernels::cpu
