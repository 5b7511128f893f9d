#include "kernels/cpu/norm.h"

#include "common/status.h"

namespace penstock::kernels::cpu {

absl::Status AddRmsNorm(const Cpu& cpu, const AddRmsNormParams& p, float* scratch) {
  const int64_t hidden = p.hidden;
  const int64_t size = p.num_tokens * hidden;
  auto* x = static_cast<const float*>(p.x);
  int num_segments = p.num_k_segments;
  if (x != nullptr && p.group != nullptr) {
    RETURN_IF_ERROR(p.group->AllReduceSum(x, num_segments, size, scratch));
    x = scratch;
    num_segments = 1;
  }
  auto* residual = static_cast<float*>(p.residual);
  auto* out = static_cast<float*>(p.out);
  ForEach(cpu, p.num_tokens, size, [&](int, int64_t t) {
    cpu.kernels->add_rms_norm(x == nullptr ? nullptr : x + t * hidden, size, num_segments,
                              residual + t * hidden, p.weight,
                              out == nullptr ? nullptr : out + t * hidden, hidden, p.epsilon);
  });
  return absl::OkStatus();
}

}  // namespace penstock::kernels::cpu
