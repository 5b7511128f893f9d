#pragma once

#include <span>

#include "absl/status/status.h"
#include "kernels/cpu/parallel.h"
#include "kernels/ops.h"

namespace penstock::kernels::cpu {

// Tokens of one row that are worked on together.
struct TokenRange {
  int32_t begin = 0;
  int32_t end = 0;
};

// See AttentionParams. `scratch` has room for T ranges. A token's numbers are the same bits in any
// batch and however its prompt was cut in steps.
absl::Status Attention(const Cpu& cpu, const AttentionParams& p, std::span<TokenRange> scratch);

}  // namespace penstock::kernels::cpu
