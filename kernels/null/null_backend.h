// A device that computes nothing, to measure all that is around one.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/ops.h"

namespace penstock::kernels::null {

struct NullOptions {
  int64_t step_us = 0;  // how long a step takes; 0: no time
  int32_t vocab_size = 0;
};

// Every op returns at once; WaitStep waits for the end of the step's time, which begins when the
// step before it has ended: like a GPU's, two steps may be under way. The id sampled
// depends on (seed, position) alone, so that streams outlive deaths as on a real device; it is out
// of [100, min(vocab_size, 1100)): ordinary text in most vocabularies. Every log-probability is 0.
// Needs no weights: LoadWeight reads none.
std::unique_ptr<Backend> MakeNullBackend(const NullOptions& options);

// The id it samples.
int32_t NullToken(uint64_t seed, int32_t position, int32_t vocab_size);

}  // namespace penstock::kernels::null
