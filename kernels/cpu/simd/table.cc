#include "kernels/cpu/simd/loops.h"

namespace penstock::kernels::cpu::PENSTOCK_ISA {

const Kernels kKernels = {
    .add_rms_norm = AddRmsNormRow,
    .rope = RopeHeads,
    .write_k = WriteK,
    .write_v = WriteV,
    .attend = Attend,
    .silu_mul = SiluMul,
    .exp = ExpRow,
    .arg_max = ArgMax,
    .exp_sum = ExpSum,
    .count_above = CountAbove,
    .next_between = NextBetween,
    .drop_below = DropBelow,
};

}  // namespace penstock::kernels::cpu::PENSTOCK_ISA
