#pragma once

#include "absl/status/status.h"
#include "kernels/cpu/parallel.h"
#include "kernels/ops.h"

namespace penstock::kernels::cpu {

// See AddRmsNormParams. `scratch` [T, D] takes the all-reduced x; unused without a group.
absl::Status AddRmsNorm(const Cpu& cpu, const AddRmsNormParams& p, float* scratch);

}  // namespace penstock::kernels::cpu
