// What every CUDA file needs: errors as Status, and launches.
//
// Launches go to one stream a backend. A kernel that is launched dependent (LaunchDependent) may
// start while its predecessor ends (programmatic dependent launch, CUDA C++ programming guide): it
// must call cudaGridDependencySynchronize() before it touches what an earlier kernel writes or may
// still read, and does well to load its weights before that.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <utility>

#include "common/status.h"

namespace penstock::kernels::cuda {

// RESOURCE_EXHAUSTED for memory, else INTERNAL; names the call. Errors of the device are sticky:
// the worker ends.
inline absl::Status CudaStatus(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return absl::OkStatus();
  if (error == cudaErrorMemoryAllocation) {
    return ResourceExhausted("{}: the GPU is out of memory", call);
  }
  return Internal("{}: {} ({})", call, cudaGetErrorString(error), cudaGetErrorName(error));
}
#define PENSTOCK_CUDA(call) RETURN_IF_ERROR(::penstock::kernels::cuda::CudaStatus((call), #call))

// Whether a kernel may begin before the one before it has ended: compute capability 9.0 on. Of the
// device that is current at the first call: a process has one.
inline bool LaunchesDependent() {
  static const bool yes = [] {
    int device = 0, major = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) ==
               cudaSuccess &&
           major >= 9;
  }();
  return yes;
}

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
};

// Launches so that the kernel may begin before the one before it in the stream has ended, where
// the device can do that.
template <typename... Params, typename... Args>
absl::Status LaunchDependent(cudaStream_t stream, const LaunchShape& shape,
                             void (*kernel)(Params...), Args&&... args) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = LaunchesDependent() ? 1 : 0;
  return CudaStatus(cudaLaunchKernelEx(&config, kernel, Params(std::forward<Args>(args))...),
                    "kernel launch");
}

}  // namespace penstock::kernels::cuda
