// What ops ask of the ranks of a tensor-parallel group. Implemented in worker/parallel.
#pragma once

#include <cstdint>

#include "absl/status/status.h"

namespace penstock::kernels {

// One thread per rank calls these, all ranks the same calls in the same order with the same sizes.
// ABORTED when a peer died: the caller's process then ends and the group starts anew.
class Collective {
 public:
  virtual ~Collective() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // out[i] = sum over ranks in rank order of the sums over segments in segment order of partials[s
  // * count + i]:
  // ((r0s0 + r0s1) + ...) + r1s0 ... strictly left to right, so the bits do not depend on how
  // segments are spread over ranks. `out` may be `partials`.
  virtual absl::Status AllReduceSum(const float* partials, int num_segments, int64_t count,
                                    float* out) = 0;
  // out[row][rank * cols + i] = that rank's in[row * cols + i].
  virtual absl::Status AllGatherColumns(const float* in, int64_t num_rows, int64_t cols,
                                        float* out) = 0;
};

}  // namespace penstock::kernels
