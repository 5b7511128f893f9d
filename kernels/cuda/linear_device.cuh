// What the kernels of linear_stream.cuh and linear_wide.cuh share: their parameters, and PTX by its
// names.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace penstock::kernels::cuda::stream {

struct Params {
  const __nv_bfloat16* x;
  const __nv_bfloat16* weight;
  const float* bias;
  void* out;
  int64_t x_stride;
  int64_t out_stride;
  int32_t num_tokens;
  int32_t n;  // output features: N, or N / 2 for kSiluUp
  int32_t k;
  int32_t l2_prefetch_bytes;
  int32_t tile_features;  // linear_wide.cuh's tiles take so many of n
};

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes from global to shared memory, or 16 zero bytes. `source` must be valid in either case.
__device__ __forceinline__ void CopyAsync(uint32_t target, const void* source, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
               "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void WaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
__device__ __forceinline__ uint4 LoadShared(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}
__device__ __forceinline__ void Multiply(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                         uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// What needs Hopper; elsewhere clusters have one block and kernels never overlap.
__device__ __forceinline__ void WaitForEarlierKernels() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}
__device__ __forceinline__ void LetLaterKernelsStart() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}
__device__ __forceinline__ void PrefetchL2(const void* source, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(source), "r"(bytes) : "memory");
#endif
}
template <int kCluster>
__device__ __forceinline__ void ArriveAtCluster() {
#if __CUDA_ARCH__ >= 900
  if constexpr (kCluster > 1) {
    __syncwarp();
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  }
#endif
}
// With one block, the wait is the whole barrier.
template <int kCluster>
__device__ __forceinline__ void WaitForCluster() {
  if constexpr (kCluster > 1) {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
  } else {
    __syncthreads();
  }
}
template <int kCluster>
__device__ __forceinline__ int ClusterRank() {
  uint32_t rank = 0;
#if __CUDA_ARCH__ >= 900
  if constexpr (kCluster > 1) asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return static_cast<int>(rank);
}
// Stores to shared memory of block `rank` of the cluster, at the address that `address` has in this
// block.
template <int kCluster>
__device__ __forceinline__ void StoreAt(uint32_t address, int rank, float value) {
  if constexpr (kCluster > 1) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; st.shared::cluster.f32 "
        "[there], %2; }" ::"r"(address),
        "r"(rank), "f"(value)
        : "memory");
#endif
  } else {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
  }
}

}  // namespace penstock::kernels::cuda::stream
