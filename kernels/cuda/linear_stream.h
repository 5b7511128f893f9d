// Linear layers for few tokens: every weight is read once, near the memory's read bandwidth.
//
// A warp owns a tile of weight rows and a slice of K. It copies weight (and x) through its own ring
// in shared memory (cp.async) and multiplies with mma m16n8k16, weight rows as the 16, tokens as
// the 8. Nothing is shared between warps until the partial products of a tile meet in shared
// memory, of one block or, where a cluster of blocks splits K, of the block that owns the row; they
// are added in a fixed order, so results are deterministic and a token's do not depend on the other
// tokens. Since weights depend on no earlier kernel, a block fills its ring (and asks for more in
// L2) before it waits for the kernel before it, and two blocks of consecutive linears fit on a
// multiprocessor: so the stream from memory goes on across kernels (programmatic dependent launch).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "kernels/cuda/linear.h"

namespace penstock::kernels::cuda {

// One compiled variant of linear_stream.cuh.
struct StreamConfig {
  std::string_view name;
  int32_t max_tokens = 0;
  int32_t rows = 0;     // weight rows of a tile
  int32_t cluster = 1;  // blocks that share a tile, splitting K
  int32_t shared_bytes = 0;
  bool fuses_silu_up = false;
};
std::span<const StreamConfig> StreamConfigs();

// Share of the multiprocessors' time that does work, since tiles come whole: <= 1.
double StreamBalance(const StreamConfig& config, int64_t n, int32_t num_multiprocessors);

// Whether the variant can run the call at all: sizes and the 16-byte alignment of x, weight and
// their strides.
bool StreamSupports(const StreamConfig& config, const LinearCall& call);

// Clusters that a launch has at most: one block a multiprocessor.
int32_t StreamMaxClusters(const StreamConfig& config, int32_t num_multiprocessors);

// Once a process and device, before the first launch.
absl::Status InitStreamLinear();

struct StreamTuning {
  int32_t num_multiprocessors = 132;
  int32_t l2_prefetch_bytes =
      64 << 10;  // a block asks L2 for this much more of its first tile before it waits
};
absl::Status RunStreamLinear(int config_index, const LinearCall& call, const StreamTuning& tuning,
                             cudaStream_t stream);

}  // namespace penstock::kernels::cuda
