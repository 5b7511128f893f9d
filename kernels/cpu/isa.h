// Which instruction set the ops run on.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "kernels/cpu/simd/kernels.h"

namespace penstock::kernels::cpu {

enum class Isa : uint8_t { kSse2, kAvx2, kAvx512 };

std::string_view IsaName(Isa isa);

// What this machine has, least first; never empty.
std::vector<Isa> AvailableIsas();

// The last of AvailableIsas().
Isa BestIsa();

// The loops for one that is available.
const Kernels& KernelsFor(Isa isa);

}  // namespace penstock::kernels::cpu
