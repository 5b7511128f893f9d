// The blocks that share one piece of work: a thread block cluster (compute capability 9.0; CUDA C++
// programming guide, "Thread Block Clusters"), or a single block.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace penstock::kernels::cuda {

// This block's dynamic shared memory.
__device__ __forceinline__ unsigned char* SharedMemory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

template <int kBlocks>
struct Cluster {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  static __device__ __forceinline__ int Rank() {
    return static_cast<int>(__clusterRelativeBlockRank());
  }
  // A barrier of all threads of all blocks; shared memory written before it, of any block, is
  // visible after it.
  static __device__ __forceinline__ void Arrive() { __cluster_barrier_arrive(); }
  static __device__ __forceinline__ void Wait() { __cluster_barrier_wait(); }
  // The same shared variable in another block.
  template <typename T>
  static __device__ __forceinline__ T* At(T* local, int rank) {
    return static_cast<T*>(__cluster_map_shared_rank(local, rank));
  }
#else  // never launched
  static __device__ int Rank() { return 0; }
  static __device__ void Arrive() { __trap(); }
  static __device__ void Wait() {}
  template <typename T>
  static __device__ T* At(T* local, int) {
    return local;
  }
#endif
};

template <>
struct Cluster<1> {
  static __device__ __forceinline__ int Rank() { return 0; }
  static __device__ __forceinline__ void Arrive() {}
  static __device__ __forceinline__ void Wait() { __syncthreads(); }
  template <typename T>
  static __device__ __forceinline__ T* At(T* local, int) {
    return local;
  }
};

}  // namespace penstock::kernels::cuda
