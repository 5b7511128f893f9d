// The kernel of linear_stream.h. Letters: M tokens, N weight rows, K; g = lane / 4, t = lane % 4 as
// in the PTX ISA's figures of mma.m16n8k16.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/vector.cuh"

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
};

// kTokenTiles of 8 tokens and kRowTiles of 16 weight rows a warp; kWarps and kCluster blocks split
// K; a copy brings kBlockK elements of every row and token; kStages of them are in flight.
template <int kTokenTiles_, int kRowTiles_, int kWarps_, int kCluster_, int kBlockK_, int kStages_>
struct Config {
  static constexpr int kTokenTiles = kTokenTiles_;
  static constexpr int kRowTiles = kRowTiles_;
  static constexpr int kWarps = kWarps_;
  static constexpr int kCluster = kCluster_;
  static constexpr int kBlockK = kBlockK_;
  static constexpr int kStages = kStages_;

  static constexpr int kTokens = kTokenTiles * 8;
  static constexpr int kRows = kRowTiles * 16;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kRowBytes = kBlockK * 2;
  static constexpr int kStageBytes = (kRows + kTokens) * kRowBytes;
  static constexpr int kOwnRows = kRows / kCluster;  // rows whose sums this block finishes
  static constexpr int kSources = kCluster * kWarps;
  static constexpr int kSumStride =
      kOwnRows + 4;  // = 4 mod 8: a fragment's stores fall on 32 banks
  static constexpr int kRingBytes = kWarps * kStages * kStageBytes;
  static constexpr int kSharedBytes = kRingBytes + kSources * kTokens * kSumStride * 4;
  static constexpr bool kFusesSiluUp = kRowTiles % kCluster == 0;
  static_assert(kBlockK == 32 || kBlockK == 64);
  static_assert(2 * kRowTiles % kCluster == 0);
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

// What needs Hopper; elsewhere clusters have one block.
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

// A lane's part of the copies: row `lane_row` of each group of kRowsPerCopy, 16 bytes at chunk
// `lane_chunk`. Chunks of odd rows are swapped by halves where rows have 128 bytes, so that the 8
// lanes that read two rows at once (16 bytes each at chunk t of row g) fall on all banks.
template <typename C, bool kGate>
class Copier {
 public:
  static constexpr int kChunks = C::kBlockK / 8;
  static constexpr int kRowsPerCopy = 32 / kChunks;
  __device__ static int Swizzle(int row, int chunk) {
    return C::kBlockK == 64 ? chunk ^ ((row & 1) << 2) : chunk;
  }

  __device__ Copier(const Params& p, uint32_t ring, int lane, int first_k)
      : p_(p), lane_row_(lane / kChunks), k_(first_k + lane % kChunks * 8) {
    target_ = ring + lane_row_ * C::kRowBytes + Swizzle(lane_row_, lane % kChunks) * 16;
  }

  // Weight rows of `tile` at K block `block` of this warp into `slot`.
  __device__ void CopyWeight(int tile, int block, int slot) const {
    const int k = k_ + block * (C::kSources * C::kBlockK);
    const bool k_valid = k < p_.k;
    const uint32_t target = target_ + slot * C::kStageBytes;
#pragma unroll
    for (int i = 0; i < C::kRows / kRowsPerCopy; ++i) {
      const int row =
          i * kRowsPerCopy;  // of the tile; lane_row_ comes on top and never leaves its 8 rows
      const int feature = kGate ? tile * (C::kRows / 2) + row / 16 * 8 + row % 8 + lane_row_
                                : tile * C::kRows + row + lane_row_;
      const bool valid = k_valid && feature < p_.n;
      const int64_t source_row =
          kGate && row % 16 >= 8 ? int64_t{p_.n} + feature : int64_t{feature};
      const __nv_bfloat16* source = valid ? p_.weight + source_row * p_.k + k : p_.weight;
      CopyAsync(target + row * C::kRowBytes, source, valid);
    }
  }
  // All beyond K is zero (the weight's zeros alone would not do: 0 * NaN).
  __device__ void CopyX(int block, int slot) const {
    const int k = k_ + block * (C::kSources * C::kBlockK);
    const uint32_t target = target_ + slot * C::kStageBytes + C::kRows * C::kRowBytes;
#pragma unroll
    for (int i = 0; i < C::kTokens / kRowsPerCopy; ++i) {
      if (i * kRowsPerCopy >= p_.num_tokens) break;  // what is there only reaches unused columns
      const int token = i * kRowsPerCopy + lane_row_;
      const bool valid = k < p_.k && token < p_.num_tokens;
      CopyAsync(target + i * kRowsPerCopy * C::kRowBytes,
                valid ? p_.x + token * p_.x_stride + k : p_.x, valid);
    }
  }

 private:
  const Params& p_;
  int lane_row_;
  int k_;
  uint32_t target_;
};

// Adds one stage's products. The k of a lane's 16 bytes are in no order that mma knows, but in the
// same one in both operands, which is all that a dot product asks.
template <typename C>
struct Fragments {
  static constexpr int kHalves = C::kBlockK / 32;
  uint4 weight[C::kRowTiles][2][kHalves];
  uint4 x[C::kTokenTiles][kHalves];

  __device__ void Load(uint32_t stage, int g, int t) {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      const int chunk = C::kBlockK == 64 ? (t + 4 * half) ^ ((g & 1) << 2) : t;
      const uint32_t lane = stage + g * C::kRowBytes + chunk * 16;
#pragma unroll
      for (int tile = 0; tile < C::kRowTiles; ++tile) {
        weight[tile][0][half] = LoadShared(lane + tile * 16 * C::kRowBytes);
        weight[tile][1][half] = LoadShared(lane + (tile * 16 + 8) * C::kRowBytes);
      }
#pragma unroll
      for (int tile = 0; tile < C::kTokenTiles; ++tile) {
        x[tile][half] = LoadShared(lane + (C::kRows + tile * 8) * C::kRowBytes);
      }
    }
  }
  __device__ void MultiplyAdd(float (&sums)[C::kRowTiles][C::kTokenTiles][4]) const {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int r = 0; r < C::kRowTiles; ++r) {
        const uint4 &low = weight[r][0][half], &high = weight[r][1][half];
#pragma unroll
        for (int c = 0; c < C::kTokenTiles; ++c) {
          Multiply(sums[r][c], low.x, high.x, low.y, high.y, x[c][half].x, x[c][half].y);
        }
#pragma unroll
        for (int c = 0; c < C::kTokenTiles; ++c) {
          Multiply(sums[r][c], low.z, high.z, low.w, high.w, x[c][half].z, x[c][half].w);
        }
      }
    }
  }
};

// A warp's partial sums to the blocks that own the rows: partial[source][token][own row].
template <typename C>
__device__ void StorePartials(uint32_t partials, int source, int g, int t,
                              const float (&sums)[C::kRowTiles][C::kTokenTiles][4]) {
  constexpr int kGroupsPerOwner = 2 * C::kRowTiles / C::kCluster;
  const uint32_t base = partials + (source * C::kTokens * C::kSumStride + g) * 4;
#pragma unroll
  for (int group = 0; group < 2 * C::kRowTiles; ++group) {  // of 8 rows
    const int owner = group / kGroupsPerOwner;
    const int row = group % kGroupsPerOwner * 8;
#pragma unroll
    for (int c = 0; c < C::kTokenTiles; ++c) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int token = c * 8 + 2 * t + j;
        StoreAt<C::kCluster>(base + (token * C::kSumStride + row) * 4, owner,
                             sums[group / 2][c][group % 2 * 2 + j]);
      }
    }
  }
}

template <typename C>
__device__ float SumPartials(const float* partials, int token, int row) {
  float sum = 0;
#pragma unroll
  for (int source = 0; source < C::kSources; ++source) {
    sum += partials[(source * C::kTokens + token) * C::kSumStride + row];
  }
  return sum;
}

// The outputs of a tile that this block owns, summed over the warps and blocks in their order.
template <typename C, LinearOutput kOutput>
__device__ void Finish(const Params& p, const float* partials, int tile, int rank) {
  constexpr int kFeatures = kOutput == LinearOutput::kSiluUp ? C::kOwnRows / 2 : C::kOwnRows;
  const int first = (tile * C::kCluster + rank) * kFeatures;
  for (int i = threadIdx.x; i < kFeatures * p.num_tokens; i += C::kThreads) {
    const int token = i / kFeatures, local = i % kFeatures;
    const int feature = first + local;
    if (feature >= p.n) continue;
    const int64_t at = token * p.out_stride + feature;
    if constexpr (kOutput == LinearOutput::kSiluUp) {
      const int row = local / 8 * 16 + local % 8;
      const float gate = SumPartials<C>(partials, token, row);
      const float up = SumPartials<C>(partials, token, row + 8);
      static_cast<__nv_bfloat16*>(p.out)[at] = __float2bfloat16(gate / (1.0f + __expf(-gate)) * up);
    } else {
      float value = SumPartials<C>(partials, token, local);
      if (p.bias != nullptr) value += p.bias[feature];
      if constexpr (kOutput == LinearOutput::kFloat) {
        static_cast<float*>(p.out)[at] = value;
      } else {
        static_cast<__nv_bfloat16*>(p.out)[at] = __float2bfloat16(value);
      }
    }
  }
}

// Grid: clusters of kCluster blocks; cluster c takes tiles c, c + clusters, ....
template <typename C, LinearOutput kOutput>
__global__ void __launch_bounds__(C::kThreads) Kernel(const __grid_constant__ Params p) {
  constexpr bool kGate = kOutput == LinearOutput::kSiluUp;
  constexpr int kTileFeatures = kGate ? C::kRows / 2 : C::kRows;
  extern __shared__ __align__(128) unsigned char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;
  const int rank = ClusterRank<C::kCluster>();
  const int source = rank * C::kWarps + warp;
  const int cluster = blockIdx.x / C::kCluster, clusters = gridDim.x / C::kCluster;
  const int tiles = (p.n + kTileFeatures - 1) / kTileFeatures;
  const int blocks = (p.k + C::kSources * C::kBlockK - 1) / (C::kSources * C::kBlockK);
  const uint32_t ring = SharedAddress(shared) + warp * C::kStages * C::kStageBytes;
  const Copier<C, kGate> copier(p, ring, lane, source * C::kBlockK);
  ArriveAtCluster<C::kCluster>();

  // Ahead of the earlier kernels: weights only.
  int copy_tile = cluster, copy_block = 0;  // of the next copy
  const auto advance = [&] {
    if (++copy_block == blocks) {
      copy_block = 0;
      copy_tile += clusters;
    }
  };
#pragma unroll
  for (int slot = 0; slot < C::kStages; ++slot) {
    if (copy_tile < tiles) copier.CopyWeight(copy_tile, copy_block, slot);
    CommitCopies();
    advance();
  }
  LetNextStart();
  if (rank == 0) {
    const int64_t begin = int64_t{C::kStages} * C::kSources * C::kBlockK;
    int64_t count = p.l2_prefetch_bytes / (2 * C::kOwnRows);
    if (begin + count > p.k) count = p.k - begin;
    for (int row = threadIdx.x; row < C::kRows && count >= 8; row += C::kThreads) {
      const int64_t feature = cluster * kTileFeatures + (kGate ? row % kTileFeatures : row);
      if (feature >= p.n) continue;
      const int64_t source_row = feature + (kGate && row >= kTileFeatures ? p.n : 0);
      PrefetchL2(p.weight + source_row * p.k + begin, static_cast<uint32_t>(count / 8 * 16));
    }
  }
  WaitForEarlier();
  copy_tile = cluster, copy_block = 0;
#pragma unroll
  for (int slot = 0; slot < C::kStages; ++slot) {
    if (copy_tile < tiles) copier.CopyX(copy_block, slot);
    CommitCopies();
    advance();
  }

  float* const partials = reinterpret_cast<float*>(shared + C::kRingBytes);
  int slot = 0;
#pragma unroll 1
  for (int tile = cluster; tile < tiles; tile += clusters) {
    float sums[C::kRowTiles][C::kTokenTiles][4] = {};
#pragma unroll 1
    for (int block = 0; block < blocks; ++block) {
      WaitCopies<C::kStages - 1>();
      __syncwarp();
      Fragments<C> fragments;
      fragments.Load(ring + slot * C::kStageBytes, g, t);
      __syncwarp();
      if (copy_tile < tiles) {
        copier.CopyWeight(copy_tile, copy_block, slot);
        copier.CopyX(copy_block, slot);
      }
      CommitCopies();
      advance();
      slot = slot + 1 == C::kStages ? 0 : slot + 1;
      fragments.MultiplyAdd(sums);
    }
    WaitForCluster<C::kCluster>();  // the last tile's partial sums are read, and every block has
                                    // started
    StorePartials<C>(SharedAddress(partials), source, g, t, sums);
    ArriveAtCluster<C::kCluster>();
    WaitForCluster<C::kCluster>();
    Finish<C, kOutput>(p, partials, tile, rank);
    // After the last tile nobody waits, and nobody writes to this block's memory any more.
    if (tile + clusters < tiles) ArriveAtCluster<C::kCluster>();
  }
}

}  // namespace penstock::kernels::cuda::stream
