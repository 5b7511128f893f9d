// The kernel of linear_stream.h for 17 to 64 tokens. Letters: M tokens, N weight rows, K; R rows of
// a tile; g = lane / 4, t = lane % 4 as in the PTX ISA's figures of mma.m16n8k16.
//
// What limits, on an H200 (132 multiprocessors, 4.72 TB/s: 36 bytes of weights a ns for each):
// - L2: every tile reads all of x, so a byte of weights brings M/R bytes of x along. The kernels of
//   linear_stream.cuh measure 6.2 to 6.5 TB/s of both together at M/R = 1/2, and still wait for
//   memory; 1 would be 9.4. So R >= 2M is aimed at, and since a block's share of N is N/132 rows
//   (31 of o and down, 46 of qkv), clusters of 2 blocks split K over 64 or 96 rows, of 4 over 128.
// - Shared memory: 227 KiB hold what is in flight, and that is also how much a block reads before
//   the kernel before it ends. x has no place there: warps split K, so one warp of the block uses
//   an element of x, and it goes from L2 to that warp's registers, one block of K ahead (which
//   lasts 1 to 2 us; L2 takes about 0.5). Where 2 warps share a slice of K, for more rows, the
//   second finds x in L1. Partial sums pass through 16 rows a warp at a time.
// - Registers: R/16 * M/8 * 4 sums and M/8 * kBlockK/8 of x a lane: 64 + 32 at R = 64, M = 32; 128
//   + 32 at R = 64, M = 64 with kBlockK 32.
// - Tensor cores: 302 TFLOP/s at M = 64, half of what mma.sync has. ldmatrix is not needed
// (Tokens).
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_device.cuh"

namespace penstock::kernels::cuda::stream::wide {

// As stream::Config, but shared memory holds weights alone, and the sums of 16 rows.
// kRowGroups warps share a slice of K: row tile r of group i is the block's r * kRowGroups + i.
template <int kTokenTiles_, int kRowTiles_, int kWarps_, int kCluster_, int kBlockK_, int kStages_,
          int kRowGroups_ = 1>
struct Config {
  static constexpr int kTokenTiles = kTokenTiles_;
  static constexpr int kRowTiles = kRowTiles_;
  static constexpr int kWarps = kWarps_;
  static constexpr int kCluster = kCluster_;
  static constexpr int kBlockK = kBlockK_;
  static constexpr int kStages = kStages_;
  static constexpr int kRowGroups = kRowGroups_;

  static constexpr int kTokens = kTokenTiles * 8;
  static constexpr int kWarpRows = kRowTiles * 16;
  static constexpr int kRows = kWarpRows * kRowGroups;
  static constexpr int kPassRows = 16 * kRowGroups;  // whose sums are added at a time
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kHalves = kBlockK / 32;
  static constexpr int kRowBytes = kBlockK * 2;
  static constexpr int kStageBytes = kWarpRows * kRowBytes;
  static constexpr int kOwnRows = kRows / kCluster;    // rows that this block writes out
  static constexpr int kSlices = kWarps / kRowGroups;  // of K
  static constexpr int kSources = kCluster * kSlices;
  static constexpr int kSumStride = 16 + 4;  // = 4 mod 8: a fragment's stores fall on 32 banks
  static constexpr int kRingBytes = kWarps * kStages * kStageBytes;
  static constexpr int kSumBytes = kWarps * kTokens * kSumStride * 4;
  static constexpr int kIncomingBytes = kCluster > 1 ? kCluster* kTokens* kOwnRows * 4 : 0;
  static constexpr int kSharedBytes = kRingBytes + kSumBytes + kIncomingBytes;
  static constexpr bool kFusesSiluUp = true;
  static_assert(kBlockK == 32 || kBlockK == 64);
  static_assert(kRowTiles % kCluster == 0 && kWarps % kRowGroups == 0);
  static_assert(kSharedBytes <= 227 << 10);
};

// 16 bytes, or zeros; kept in L1 only for others on this multiprocessor.
template <bool kShared>
__device__ __forceinline__ uint4 LoadOrZero(const void* source, bool valid) {
  uint4 v = {0, 0, 0, 0};
  if constexpr (kShared) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %5, 0; @p ld.global.v4.u32 {%0,%1,%2,%3}, [%4]; }"
                 : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
                 : "l"(source), "r"(static_cast<int>(valid))
                 : "memory");
  } else {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %5, 0; "
        "@p ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4]; }"
        : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
        : "l"(source), "r"(static_cast<int>(valid))
        : "memory");
  }
  return v;
}

// The warps of one slice of K wait for each other, so that what one has loaded is still in L1 when
// the other asks for it.
template <typename C>
__device__ __forceinline__ void KeepPace(int slice) {
  if constexpr (C::kRowGroups > 1) {
    asm volatile("bar.sync %0, %1;" ::"r"(slice + 1), "n"(C::kRowGroups * 32) : "memory");
  }
}

// Tiles are of p.tile_features features, up to kRows rows: so many as share the work evenly.
// Of a tile with kGate, rows 16i to 16i + 7 are the gates of features 8i to 8i + 7, and rows 16i +
// 8 to 16i + 15 their ups: both of a feature meet in one pass of the sums.
template <typename C, bool kGate>
class Copier {
 public:
  static constexpr int kChunks = C::kBlockK / 8;
  static constexpr int kRowsPerCopy = 32 / kChunks;

  // Chunks of odd rows are swapped by halves where rows have 128 bytes, so that the 8 lanes that
  // read two rows at once (16 bytes each at chunk t of row g) fall on all banks.
  __device__ Copier(const Params& p, uint32_t ring, int lane, int group, int first_k)
      : p_(p), lane_row_(lane / kChunks), k_(first_k + lane % kChunks * 8) {
    lane_feature_ = group * (kGate ? 8 : 16) + lane_row_;
    const int chunk = lane % kChunks;
    const int swizzled = C::kBlockK == 64 ? chunk ^ ((lane_row_ & 1) << 2) : chunk;
    target_ = ring + lane_row_ * C::kRowBytes + swizzled * 16;
  }

  // Weight rows of `tile` at K block `block` of this warp into `slot`.
  __device__ void Copy(int tile, int block, int slot) const {
    const int k = k_ + block * (C::kSources * C::kBlockK);
    const bool k_valid = k < p_.k;
    const uint32_t target = target_ + slot * C::kStageBytes;
    const int first = tile * p_.tile_features;
    const int features = min(p_.tile_features, p_.n - first);  // may be <= 0
    const __nv_bfloat16* const origin = p_.weight + int64_t{first} * p_.k + k;
#pragma unroll
    for (int i = 0; i < C::kWarpRows / kRowsPerCopy; ++i) {
      const int row = i * kRowsPerCopy;  // lane_row_ comes on top and never leaves its 8 rows
      const int feature = kGate ? row / 16 * (C::kPassRows / 2) + row % 8 + lane_feature_
                                : row / 16 * C::kPassRows + row % 16 + lane_feature_;
      const int64_t source_row = kGate && row % 16 >= 8 ? int64_t{p_.n} + feature : feature;
      const bool valid = k_valid && feature < features;
      CopyAsync(target + row * C::kRowBytes, valid ? origin + source_row * p_.k : p_.weight, valid);
    }
  }

 private:
  const Params& p_;
  int lane_row_;
  int lane_feature_;
  int k_;
  uint32_t target_;
};

// x of one block of K as mma's second operand. The k of a lane's 16 bytes are in no order that mma
// knows, but in the same one in both operands, which is all that a dot product asks.
template <typename C>
struct Tokens {
  uint4 x[C::kHalves][C::kTokenTiles];

  // All beyond K is zero (the weight's zeros alone would not do: 0 * NaN).
  __device__ void Load(const Params& p, int half, int k, int g) {
#pragma unroll
    for (int tile = 0; tile < C::kTokenTiles; ++tile) {
      const int token = tile * 8 + g;
      const bool valid = k + half * 32 < p.k && token < p.num_tokens;
      const void* const source = p.x + token * p.x_stride + k + half * 32;
      x[half][tile] = LoadOrZero<(C::kRowGroups > 1)>(valid ? source : p.x, valid);
    }
  }
};

template <typename C>
__device__ __forceinline__ void MultiplyAdd(float (&sums)[C::kRowTiles][C::kTokenTiles][4],
                                            uint32_t stage, const uint4 (&x)[C::kTokenTiles],
                                            int half, int g, int t) {
  const int chunk = C::kBlockK == 64 ? (t + 4 * half) ^ ((g & 1) << 2) : t;
  const uint32_t lane = stage + g * C::kRowBytes + chunk * 16;
#pragma unroll
  for (int r = 0; r < C::kRowTiles; ++r) {
    const uint4 low = LoadShared(lane + r * 16 * C::kRowBytes);
    const uint4 high = LoadShared(lane + (r * 16 + 8) * C::kRowBytes);
#pragma unroll
    for (int c = 0; c < C::kTokenTiles; ++c) {
      Multiply(sums[r][c], low.x, high.x, low.y, high.y, x[c].x, x[c].y);
    }
#pragma unroll
    for (int c = 0; c < C::kTokenTiles; ++c) {
      Multiply(sums[r][c], low.z, high.z, low.w, high.w, x[c].z, x[c].w);
    }
  }
}

// Writes kRows rows of a tile from its row `first_row` on, whose sums are sum(token, row).
template <typename C, LinearOutput kOutput, int kRows, typename Sum>
__device__ __forceinline__ void WriteRows(const Params& p, int tile, int first_row, Sum sum) {
  constexpr bool kGate = kOutput == LinearOutput::kSiluUp;
  constexpr int kFeatures = kGate ? kRows / 2 : kRows;
  const int first = kGate ? first_row / 2 : first_row;
  for (int i = threadIdx.x; i < kFeatures * p.num_tokens; i += C::kThreads) {
    const int token = i / kFeatures, local = i % kFeatures;
    const int feature = tile * p.tile_features + first + local;
    if (first + local >= p.tile_features || feature >= p.n) continue;
    const int64_t at = token * p.out_stride + feature;
    if constexpr (kGate) {
      const int row = local / 8 * 16 + local % 8;
      const float gate = sum(token, row);
      const float up = sum(token, row + 8);
      static_cast<__nv_bfloat16*>(p.out)[at] = __float2bfloat16(gate / (1.0f + __expf(-gate)) * up);
    } else {
      float value = sum(token, local);
      if (p.bias != nullptr) value += p.bias[feature];
      if constexpr (kOutput == LinearOutput::kFloat) {
        static_cast<float*>(p.out)[at] = value;
      } else {
        static_cast<__nv_bfloat16*>(p.out)[at] = __float2bfloat16(value);
      }
    }
  }
}

// Adds the warps' sums kPassRows rows at a time, in the warps' order, and writes them, or, in a
// cluster, sends them to the block that owns the row, which adds the blocks' in their order.
template <typename C, LinearOutput kOutput>
__device__ __forceinline__ void Finish(const Params& p, float* partials, float* incoming, int tile,
                                       int rank,
                                       const float (&sums)[C::kRowTiles][C::kTokenTiles][4]) {
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const auto warps_sum = [&](int token, int row) {
    float sum = 0;
#pragma unroll
    for (int slice = 0; slice < C::kSlices; ++slice) {
      const int source = slice * C::kRowGroups + row / 16;
      sum += partials[(source * C::kTokens + token) * C::kSumStride + row % 16];
    }
    return sum;
  };
  const uint32_t mine = SharedAddress(partials) + warp * C::kTokens * C::kSumStride * 4;
  if constexpr (C::kCluster > 1) WaitForCluster<C::kCluster>();  // `incoming` is read, or is there
#pragma unroll
  for (int r = 0; r < C::kRowTiles; ++r) {
    __syncthreads();  // the last pass's sums are read
#pragma unroll
    for (int c = 0; c < C::kTokenTiles; ++c) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int token = c * 8 + 2 * t + j % 2, row = j / 2 * 8 + g;
        StoreAt<1>(mine + (token * C::kSumStride + row) * 4, 0, sums[r][c][j]);
      }
    }
    __syncthreads();
    if constexpr (C::kCluster == 1) {
      WriteRows<C, kOutput, C::kPassRows>(p, tile, r * C::kPassRows, warps_sum);
    } else {
      const int owner = r * C::kPassRows / C::kOwnRows;
      const uint32_t to = SharedAddress(incoming) +
                          (rank * C::kTokens * C::kOwnRows + r * C::kPassRows % C::kOwnRows) * 4;
      for (int i = threadIdx.x; i < C::kPassRows * p.num_tokens; i += C::kThreads) {
        const int token = i / C::kPassRows, row = i % C::kPassRows;
        StoreAt<C::kCluster>(to + (token * C::kOwnRows + row) * 4, owner, warps_sum(token, row));
      }
    }
  }
  if constexpr (C::kCluster > 1) {
    ArriveAtCluster<C::kCluster>();
    WaitForCluster<C::kCluster>();
    WriteRows<C, kOutput, C::kOwnRows>(p, tile, rank * C::kOwnRows, [&](int token, int row) {
      float sum = 0;
#pragma unroll
      for (int source = 0; source < C::kCluster; ++source) {
        sum += incoming[(source * C::kTokens + token) * C::kOwnRows + row];
      }
      return sum;
    });
  }
}

// More of the block's first tile than its ring holds, into L2.
template <typename C, bool kGate>
__device__ __forceinline__ void PrefetchTile(const Params& p, int tile) {
  const int64_t begin = int64_t{C::kStages} * C::kSources * C::kBlockK;
  int64_t count = p.l2_prefetch_bytes / (2 * C::kOwnRows);
  if (begin + count > p.k) count = p.k - begin;
  for (int row = threadIdx.x; row < C::kRows && count >= 8; row += C::kThreads) {
    const int local = kGate ? row % (C::kRows / 2) : row;
    const int64_t feature = int64_t{tile} * p.tile_features + local;
    if (local >= p.tile_features || feature >= p.n) continue;
    const int64_t source_row = feature + (kGate && row >= C::kRows / 2 ? p.n : 0);
    PrefetchL2(p.weight + source_row * p.k + begin, static_cast<uint32_t>(count / 8 * 16));
  }
}

// Grid: clusters of kCluster blocks; cluster c takes tiles c, c + clusters, ....
template <typename C, LinearOutput kOutput>
__global__ void __launch_bounds__(C::kThreads, 1) Kernel(const __grid_constant__ Params p) {
  constexpr bool kGate = kOutput == LinearOutput::kSiluUp;
  extern __shared__ __align__(128) unsigned char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;
  const int rank = ClusterRank<C::kCluster>();
  const int group = warp % C::kRowGroups, slice = warp / C::kRowGroups;
  const int first_k = (rank * C::kSlices + slice) * C::kBlockK;
  const int cluster = blockIdx.x / C::kCluster, clusters = gridDim.x / C::kCluster;
  const int tiles = (p.n + p.tile_features - 1) / p.tile_features;
  const int blocks = (p.k + C::kSources * C::kBlockK - 1) / (C::kSources * C::kBlockK);
  const uint32_t ring = SharedAddress(shared) + warp * C::kStages * C::kStageBytes;
  const Copier<C, kGate> copier(p, ring, lane, group, first_k);
  if constexpr (C::kCluster > 1) ArriveAtCluster<C::kCluster>();

  // Ahead of the earlier kernels: weights only.
  int copy_tile = cluster, copy_block = 0;  // of the next copy
  const auto copy = [&](int slot) {
    if (copy_tile < tiles) copier.Copy(copy_tile, copy_block, slot);
    CommitCopies();
    if (++copy_block == blocks) {
      copy_block = 0;
      copy_tile += clusters;
    }
  };
#pragma unroll 1
  for (int slot = 0; slot < C::kStages; ++slot) copy(slot);
  LetLaterKernelsStart();
  if (rank == 0) PrefetchTile<C, kGate>(p, cluster);
  WaitForEarlierKernels();

  Tokens<C> tokens;
#pragma unroll
  for (int half = 0; half < C::kHalves; ++half) tokens.Load(p, half, first_k + t * 8, g);
  float* const partials = reinterpret_cast<float*>(shared + C::kRingBytes);
  float* const incoming = partials + C::kSumBytes / 4;
  int slot = 0;
#pragma unroll 1
  for (int tile = cluster; tile < tiles; tile += clusters) {
    float sums[C::kRowTiles][C::kTokenTiles][4] = {};
#pragma unroll 1
    for (int block = 0; block < blocks; ++block) {
      // Beyond K after the very last block: nothing is loaded.
      int next = block + 1;
      if (next == blocks && tile + clusters < tiles) next = 0;
      const int next_k = first_k + t * 8 + next * (C::kSources * C::kBlockK);
      WaitCopies<C::kStages - 1>();
      __syncwarp();
      KeepPace<C>(slice);
#pragma unroll
      for (int half = 0; half < C::kHalves; ++half) {
        MultiplyAdd<C>(sums, ring + slot * C::kStageBytes, tokens.x[half], half, g, t);
        tokens.Load(p, half, next_k, g);
      }
      __syncwarp();
      copy(slot);
      slot = slot + 1 == C::kStages ? 0 : slot + 1;
    }
    Finish<C, kOutput>(p, partials, incoming, tile, rank, sums);
    // After the last tile nobody waits, and nobody writes to this block's memory any more.
    if (C::kCluster > 1 && tile + clusters < tiles) ArriveAtCluster<C::kCluster>();
  }
}

}  // namespace penstock::kernels::cuda::stream::wide
