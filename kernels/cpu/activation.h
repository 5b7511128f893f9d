#pragma once

#include "kernels/cpu/parallel.h"
#include "kernels/ops.h"

namespace penstock::kernels::cpu {

// See GatedActivationParams.
void GatedActivation(const Cpu& cpu, const GatedActivationParams& p);

}  // namespace penstock::kernels::cpu
