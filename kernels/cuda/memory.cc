#include "kernels/cuda/memory.h"

#include <algorithm>

#include "kernels/cuda/device.h"

namespace penstock::kernels::cuda {
namespace {

class DeviceBuffer : public Buffer {
 public:
  ~DeviceBuffer() override { cudaFree(data); }
};

class PinnedBuffer : public Buffer {
 public:
  ~PinnedBuffer() override { cudaFreeHost(data); }
};

int64_t Mib(int64_t bytes) { return bytes >> 20; }

absl::Status OutOfMemory(size_t bytes) {
  cudaGetLastError();  // it is not sticky
  ASSIGN_OR_RETURN(const DeviceMemory memory, QueryMemory());
  const auto wanted = static_cast<int64_t>(bytes);
  return ResourceExhausted(
      "{} MiB of GPU memory are wanted, {} of {} MiB are free: {} MiB are missing. Lower "
      "--gpu-memory-utilization (or --kv-cache-memory-mb) and --max-num-batched-tokens, end what "
      "else uses the GPU (nvidia-smi lists it), or shard the model (--tensor-parallel-size)",
      Mib(wanted), Mib(memory.free), Mib(memory.total), Mib(wanted - memory.free) + 1);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Buffer>> AllocateDevice(size_t bytes) {
  auto buffer = std::make_unique<DeviceBuffer>();
  buffer->bytes = std::max<size_t>(bytes, 16);
  const cudaError_t error = cudaMalloc(&buffer->data, buffer->bytes);
  if (error == cudaErrorMemoryAllocation) return OutOfMemory(bytes);
  RETURN_IF_ERROR(CudaStatus(error, "cudaMalloc"));
  return buffer;
}

absl::StatusOr<std::unique_ptr<Buffer>> AllocatePinned(size_t bytes) {
  auto buffer = std::make_unique<PinnedBuffer>();
  buffer->bytes = std::max<size_t>(bytes, 16);
  const cudaError_t error = cudaMallocHost(&buffer->data, buffer->bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return ResourceExhausted(
        "{} MiB of pinned host memory are not to be had: raise the container's memory, or lower "
        "--max-num-seqs or --max-model-len",
        Mib(static_cast<int64_t>(bytes)));
  }
  RETURN_IF_ERROR(CudaStatus(error, "cudaMallocHost"));
  return buffer;
}

absl::StatusOr<DeviceMemory> QueryMemory() {
  size_t free = 0, total = 0;
  PENSTOCK_CUDA(cudaMemGetInfo(&free, &total));
  return DeviceMemory{static_cast<int64_t>(free), static_cast<int64_t>(total)};
}

}  // namespace penstock::kernels::cuda
