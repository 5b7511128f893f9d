// The op set on one NVIDIA GPU: bf16 weights, activations and KV pages, float32 sums.
//
// All ops are queued on one stream; Synchronize waits for it. What describes a step goes to the
// device in one copy from pinned memory (BeginStep).
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
  std::string cache_directory;  // of measured GEMM choices; empty: the user's cache
};

// UNAVAILABLE: no driver or no GPU. UNIMPLEMENTED: a GPU this build has no kernels for; both say
// what to do.
absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaOptions& options);

// Bytes of the device that are free now.
absl::StatusOr<int64_t> FreeDeviceMemory();

}  // namespace penstock::kernels::cuda
