// What fills device memory before a step: weight conversion, dummy weights, known ids, pages.
#include <cuda_fp16.h>

#include <algorithm>

#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/vector.cuh"
#include "kernels/random_weight.h"

namespace penstock::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxBlocks = 132 * 8;

// Enough blocks for `vectors`, each of a grid-stride loop.
int BlocksFor(int64_t vectors) {
  return static_cast<int>(std::clamp<int64_t>((vectors + kThreads - 1) / kThreads, 1, kMaxBlocks));
}

__device__ __forceinline__ void LoadAsFloats(const float* p, float (&out)[kVector]) {
  LoadFloats(p, out);
}

__device__ __forceinline__ void LoadAsFloats(const __half* p, float (&out)[kVector]) {
  const uint4 packed = *reinterpret_cast<const uint4*>(p);
  const uint32_t words[] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < kVector / 2; ++i) {
    out[2 * i] = __half2float(__ushort_as_half(static_cast<uint16_t>(words[i])));
    out[2 * i + 1] = __half2float(__ushort_as_half(static_cast<uint16_t>(words[i] >> 16)));
  }
}

__device__ __forceinline__ float AsFloat(float x) { return x; }
__device__ __forceinline__ float AsFloat(__half x) { return __half2float(x); }

template <typename T>
__global__ void __launch_bounds__(kThreads)
    ConvertKernel(const T* src, __nv_bfloat16* dst, int64_t count) {
  WaitForEarlier();
  const int64_t vectors = count / kVector;
  const int64_t first = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  for (int64_t v = first; v < vectors; v += int64_t{kThreads} * gridDim.x) {
    float values[kVector];
    LoadAsFloats(src + v * kVector, values);
    StoreVector(dst + v * kVector, Pack(values));
  }
  const int64_t tail = vectors * kVector + first;
  if (tail < count) dst[tail] = __float2bfloat16_rn(AsFloat(src[tail]));
}

__global__ void __launch_bounds__(kThreads)
    FillRandomWeightKernel(__nv_bfloat16* dst, int64_t count, uint64_t seed, int64_t first_index) {
  WaitForEarlier();
  const int64_t vectors = (count + kVector - 1) / kVector;
  for (int64_t v = blockIdx.x * int64_t{kThreads} + threadIdx.x; v < vectors;
       v += int64_t{kThreads} * gridDim.x) {
    const int64_t at = v * kVector;
    float values[kVector];
#pragma unroll
    for (int i = 0; i < kVector; ++i) values[i] = RandomWeightValue(seed, first_index + at + i);
    if (at + kVector <= count) {
      StoreVector(dst + at, Pack(values));
    } else {
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        if (at + i < count) dst[at + i] = __float2bfloat16_rn(values[i]);
      }
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    CopyTokensKernel(const TokenRun* runs, const int32_t* staged, int32_t* ids, int64_t stride) {
  LetNextStart();
  WaitForEarlier();
  const TokenRun run = runs[blockIdx.x];
  if (run.slot < 0) return;
  int32_t* out = ids + run.slot * stride + run.position;
  for (int i = blockIdx.y * kThreads + threadIdx.x; i < run.count; i += kThreads * gridDim.y) {
    out[i] = staged[run.begin + i];
  }
}

__global__ void __launch_bounds__(kThreads)
    ScatterPagesKernel(const PageEntry* entries, int count, int32_t* page_table, int64_t stride) {
  LetNextStart();
  WaitForEarlier();
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= count || entries[i].slot < 0) return;
  page_table[entries[i].slot * stride + entries[i].index] = entries[i].page;
}

// What one launch copies. The lists are kernel parameters, which a launch takes along (4 KiB at
// most): nothing is staged.
struct PageCopies {
  static constexpr int kMaxBuffers = 256;
  static constexpr int kMaxCopies = 128;
  uint4* buffers[kMaxBuffers];
  PageCopy copies[kMaxCopies];
};

// Block (b, c): copy c in buffer b; a page is `vectors` long.
__global__ void __launch_bounds__(kThreads)
    CopyPagesKernel(const __grid_constant__ PageCopies lists, int64_t vectors) {
  WaitForEarlier();
  uint4* const base = lists.buffers[blockIdx.x];
  const PageCopy copy = lists.copies[blockIdx.y];
  const uint4* const from = base + copy.from * vectors;
  uint4* const to = base + copy.to * vectors;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < vectors; i += kThreads) to[i] = from[i];
}

bool IsAligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % sizeof(uint4) == 0; }

}  // namespace

absl::Status ConvertToBf16(cudaStream_t stream, const void* src, DType type, __nv_bfloat16* dst,
                           int64_t count) {
  if (count == 0) return absl::OkStatus();
  if (!IsAligned(src) || !IsAligned(dst)) {
    return InvalidArgument("conversion to bf16 needs 16-byte aligned memory");
  }
  const LaunchShape shape = {dim3(BlocksFor(count / kVector)), dim3(kThreads)};
  switch (type) {
    case DType::kF32:
      return LaunchDependent(stream, shape, &ConvertKernel<float>, static_cast<const float*>(src),
                             dst, count);
    case DType::kF16:
      return LaunchDependent(stream, shape, &ConvertKernel<__half>, static_cast<const __half*>(src),
                             dst, count);
    case DType::kBF16:
      break;
  }
  return CudaStatus(
      cudaMemcpyAsync(dst, src, count * sizeof(*dst), cudaMemcpyDeviceToDevice, stream),
      "cudaMemcpyAsync");
}

absl::Status FillRandomWeight(cudaStream_t stream, __nv_bfloat16* dst, int64_t count, uint64_t seed,
                              int64_t first_index) {
  if (count == 0) return absl::OkStatus();
  if (!IsAligned(dst)) return InvalidArgument("random weights need 16-byte aligned memory");
  const LaunchShape shape = {dim3(BlocksFor(count / kVector)), dim3(kThreads)};
  return LaunchDependent(stream, shape, &FillRandomWeightKernel, dst, count, seed, first_index);
}

absl::Status CopyTokens(cudaStream_t stream, const TokenRun* runs, int32_t num_runs,
                        const int32_t* staged, TokenTable table) {
  if (num_runs == 0) return absl::OkStatus();
  constexpr int kBlocksPerRun = 8;
  const LaunchShape shape = {dim3(num_runs, kBlocksPerRun), dim3(kThreads)};
  return LaunchDependent(stream, shape, &CopyTokensKernel, runs, staged, table.ids, table.stride);
}

absl::Status CopyPages(cudaStream_t stream, const CopyPagesParams& p) {
  constexpr size_t kMaxLayers = PageCopies::kMaxBuffers / 2;
  for (size_t layer = 0; layer < p.layers.size(); layer += kMaxLayers) {
    const auto layers = p.layers.subspan(layer, std::min(kMaxLayers, p.layers.size() - layer));
    const int64_t bytes = static_cast<int64_t>(DTypeSize(layers[0].dtype)) * p.page_elements;
    if (bytes % sizeof(uint4) != 0) {
      return InvalidArgument("pages of {} bytes: those of a multiple of 16 can be copied", bytes);
    }
    PageCopies lists;
    unsigned num_buffers = 0;
    for (const KvLayer& kv : layers) {
      for (void* pages : {kv.k, kv.v}) lists.buffers[num_buffers++] = static_cast<uint4*>(pages);
    }
    for (size_t first = 0; first < p.copies.size(); first += PageCopies::kMaxCopies) {
      const auto copies = p.copies.subspan(
          first, std::min<size_t>(PageCopies::kMaxCopies, p.copies.size() - first));
      std::copy(copies.begin(), copies.end(), lists.copies);
      const LaunchShape shape = {dim3(num_buffers, static_cast<unsigned>(copies.size())),
                                 dim3(kThreads)};
      RETURN_IF_ERROR(LaunchDependent(stream, shape, &CopyPagesKernel, lists,
                                      bytes / static_cast<int64_t>(sizeof(uint4))));
    }
  }
  return absl::OkStatus();
}

absl::Status ScatterPages(cudaStream_t stream, const PageEntry* entries, int32_t count,
                          int32_t* page_table, int64_t stride) {
  if (count == 0) return absl::OkStatus();
  const LaunchShape shape = {dim3((count + kThreads - 1) / kThreads), dim3(kThreads)};
  return LaunchDependent(stream, shape, &ScatterPagesKernel, entries, count, page_table, stride);
}

}  // namespace penstock::kernels::cuda
