// The op set on one NVIDIA GPU: bf16 weights, activations and KV pages, float32 sums.
//
// All ops are queued on one stream and return at once; two steps may be under way
// (step_staging.h), so the GPU goes from one to the next without the host. Steps of single-token
// rows are replayed from CUDA graphs (CaptureSizes), padded to the next size captured.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/ops.h"

namespace penstock::kernels::cuda {

struct CudaOptions {
  int device = 0;  // ordinal, as CUDA_VISIBLE_DEVICES leaves them
  int num_slots = 256;
  int max_pages_per_slot = 0;   // page_table_stride of every batch
  bool enforce_eager = false;   // capture nothing
  std::string cache_directory;  // of measured GEMM choices; empty: the user's cache
};

// INVALID_ARGUMENT: no driver or no such GPU. UNIMPLEMENTED: a GPU this build has no kernels for.
// Both say what to do.
absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaOptions& options);

}  // namespace penstock::kernels::cuda
