// The variants of linear_tile.cuh (Hopper's wgmma). Used through linear_stream.h.
#pragma once

#include <cuda_runtime.h>

#include <span>

#include "absl/status/status.h"
#include "kernels/cuda/linear_stream.h"

namespace penstock::kernels::cuda {

std::span<const StreamConfig> TileConfigs();
// Also says how many clusters of 4 blocks run at once, a block a multiprocessor.
absl::Status InitTileLinear(int32_t& max_clusters_of_4);
// `clusters`: how many to launch.
absl::Status RunTileLinear(int index, const LinearCall& call, const StreamTuning& tuning,
                           int64_t clusters, cudaStream_t stream);

}  // namespace penstock::kernels::cuda
