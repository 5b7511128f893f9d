// The op set on the CPU.
#pragma once

#include <memory>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/linear.h"
#include "kernels/ops.h"

namespace penstock::kernels::cpu {

struct CpuOptions {
  Mode mode = Mode::kFast;
  int threads = 1;      // an op may use, the caller's included
  Isa isa = BestIsa();  // of the ops but the linear ones; for tests
};

// Allocates nothing in an op once Reserve has been called. KV pages may be F32, F16 or BF16.
std::unique_ptr<Backend> MakeCpuBackend(const CpuOptions& options);

}  // namespace penstock::kernels::cpu
