#pragma once

#include "absl/status/status.h"
#include "kernels/cpu/parallel.h"
#include "kernels/ops.h"

namespace penstock::kernels::cpu {

KvType KvTypeOf(DType type);

// INVALID_ARGUMENT if the CPU loops can't do heads of this size.
absl::Status CheckHeadSize(int head_size);

// See RopeKvWriteParams. The pages' inner layout is that of simd/kernels.h.
absl::Status RopeKvWrite(const Cpu& cpu, const RopeKvWriteParams& p);

}  // namespace penstock::kernels::cpu
