// Linear layers for some dozens of tokens: the weight is streamed once, as in linear_stream.h, but
// a cluster of blocks shares each tile of rows, so that x, which every tile needs whole, is read
// from L2 far less often than the weight.
//
// A block multiplies kWarpgroups * 64 weight rows by all tokens over its share of K: a producer
// warp brings 64-element slices of both by the copy engine into 128-byte swizzled shared memory, a
// warpgroup a 64 rows multiplies them with wgmma (weight rows as M, tokens as N). Then every block
// adds, in block order, the partial sums of the rows it owns. Letters as in linear_stream.cuh.
// sm_90a alone: elsewhere the kernel traps.
#pragma once

#include <cuda.h>

#include "kernels/cuda/linear_stream.cuh"

namespace penstock::kernels::cuda::tile {

constexpr int kBlockK = 64;
constexpr int kSliceBytes = 64 * kBlockK * 2;  // 64 rows of a stage
constexpr int kProducerThreads = 32;

struct Params {
  CUtensorMap weight;  // [N, K], boxes of 64 rows and 64 elements
  CUtensorMap x;       // [M, K], boxes of kTokens rows
  const float* bias;
  void* out;
  int64_t out_stride;
  int32_t num_tokens;
  int32_t n;  // output features: N, or N / 2 for kSiluUp
  int32_t k;
  int32_t l2_prefetch_bytes;
};

template <int kTokens_, int kWarpgroups_, int kCluster_, int kStages_>
struct Config {
  static constexpr int kTokens = kTokens_;
  static constexpr int kWarpgroups = kWarpgroups_;
  static constexpr int kCluster = kCluster_;
  static constexpr int kStages = kStages_;

  static constexpr int kRows = kWarpgroups * 64;
  static constexpr int kConsumers = kWarpgroups * 128;
  static constexpr int kThreads = kConsumers + kProducerThreads;
  static constexpr int kWarps = kWarpgroups * 4;
  static constexpr int kStageBytes = kWarpgroups * kSliceBytes + kTokens * kBlockK * 2;
  static constexpr int kSlice = 64 / kCluster;  // rows of each 64 that a block owns
  static constexpr int kOwnRows = kWarpgroups * kSlice;
  static constexpr int kSumStride =
      kTokens + (kWarpgroups == 3 ? 4 : 8);  // spreads rows over the banks
  static constexpr int kRingBytes = kStages * kStageBytes;
  static constexpr int kPartialBytes = kCluster * kOwnRows * kSumStride * 4;
  static constexpr int kBarriers = 2 * kStages + 2;
  static constexpr int kSharedBytes =
      1024 + kRingBytes + kPartialBytes + kBarriers * 8;  // 1024: to align the ring
  static constexpr bool kFusesSiluUp = kWarpgroups == 2;
  static_assert(kTokens % 16 == 0 && kSlice % 16 == 0);
};

__device__ __forceinline__ void InitBarrier(uint32_t barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void ArriveExpecting(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void Arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// At the same barrier of block `rank`; what this warp has stored there is seen by who waits.
__device__ __forceinline__ void ArriveAt(uint32_t barrier, int rank) {
  asm volatile(
      "{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there]; }" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
__device__ __forceinline__ void Wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{ .reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again; }" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
// For barriers that other blocks arrive at.
__device__ __forceinline__ void WaitForBlocks(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{ .reg .pred done;\n"
      "again: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again; }" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
__device__ __forceinline__ void CopyBox(uint32_t target, const CUtensorMap& map, int k, int row,
                                        uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3}], [%4];" ::"r"(target),
      "l"(&map), "r"(k), "r"(row), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void PrefetchBox(const CUtensorMap& map, int k, int row) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];" ::"l"(&map), "r"(k),
               "r"(row)
               : "memory");
}
__device__ __forceinline__ void StorePairAt(uint32_t address, int rank, float a, float b) {
  asm volatile(
      "{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; st.shared::cluster.v2.f32 "
      "[there], {%2, %3}; }" ::"r"(address),
      "r"(rank), "f"(a), "f"(b)
      : "memory");
}

// A matrix in 128-byte swizzled shared memory, k contiguous, groups of 8 rows 1024 bytes apart (PTX
// ISA, wgmma matrix descriptor).
__device__ __forceinline__ uint64_t Matrix(uint32_t address) {
  return (uint64_t{1} << 62) | (uint64_t{64} << 32) | (uint64_t{1} << 16) |
         ((address & 0x3ffff) >> 4);
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// sums[64 rows, kTokens] += a[64, 16] * b[kTokens, 16]^T by a warpgroup.
__device__ __forceinline__ void Multiply16(float* c, uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7}, %8, %9, 1, "
      "1, 1, 0, 0;"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]),
        "+f"(c[7])
      : "l"(a), "l"(b));
}
__device__ __forceinline__ void Multiply32(float* c, uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15},"
      " %16, %17, 1, 1, 1, 0, 0;"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]),
        "+f"(c[7]), "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]),
        "+f"(c[14]), "+f"(c[15])
      : "l"(a), "l"(b));
}
__device__ __forceinline__ void Multiply64(float* c, uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, 1, 1, 1, 0, 0;"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]),
        "+f"(c[7]), "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]),
        "+f"(c[14]), "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]),
        "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]),
        "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31])
      : "l"(a), "l"(b));
}
// kTokens in pieces of 64, 32 and 16.
template <int kTokens>
__device__ __forceinline__ void MultiplyAll(float* sums, uint64_t a, uint64_t b) {
  constexpr int kPiece = kTokens >= 64 ? 64 : kTokens >= 32 ? 32 : 16;
  if constexpr (kPiece == 64) Multiply64(sums, a, b);
  if constexpr (kPiece == 32) Multiply32(sums, a, b);
  if constexpr (kPiece == 16) Multiply16(sums, a, b);
  if constexpr (kTokens > kPiece) {
    MultiplyAll<kTokens - kPiece>(sums + kPiece / 2, a, b + kPiece * kBlockK * 2 / 16);
  }
}

// Shared memory and this block's share of the work.
template <typename C, bool kGate>
struct Block {
  static constexpr int kTileFeatures = kGate ? C::kRows / 2 : C::kRows;
  uint32_t ring, partials, barriers;
  int rank, cluster, clusters, tiles;
  int first_block, num_blocks;  // K blocks of each tile

  __device__ Block(const Params& p, uint32_t shared) {
    ring = (shared + 1023) & ~1023u;
    partials = ring + C::kRingBytes;
    barriers = partials + C::kPartialBytes;
    rank = stream::ClusterRank<C::kCluster>();
    cluster = blockIdx.x / C::kCluster, clusters = gridDim.x / C::kCluster;
    tiles = (p.n + kTileFeatures - 1) / kTileFeatures;
    const int blocks = (p.k + kBlockK - 1) / kBlockK;
    const int share = (blocks + C::kCluster - 1) / C::kCluster;
    first_block = min(rank * share, blocks);
    num_blocks = min(share, blocks - first_block);
  }
  __device__ uint32_t Stage(int s) const { return ring + s * C::kStageBytes; }
  __device__ uint32_t Filled(int s) const { return barriers + 8 * s; }
  __device__ uint32_t Emptied(int s) const { return barriers + 8 * (C::kStages + s); }
  __device__ uint32_t PartialsWritten() const { return barriers + 16 * C::kStages; }
  __device__ uint32_t PartialsRead() const { return PartialsWritten() + 8; }
  // First row of the slice of a warpgroup.
  __device__ int Row(const Params& p, int tile, int warpgroup) const {
    return kGate ? tile * kTileFeatures + warpgroup * p.n : tile * C::kRows + warpgroup * 64;
  }
};

// One thread does all copies of a block.
template <typename C, bool kGate>
class Producer {
 public:
  __device__ Producer(const Params& p, const Block<C, kGate>& b) : p_(p), b_(b) {
    total_ = (b.tiles - b.cluster + b.clusters - 1) / b.clusters * b.num_blocks;
    ahead_ = min(total_, C::kStages);
  }
  // Weights, before the earlier kernels have ended.
  __device__ void CopyAhead() {
    for (int i = 0; i < ahead_; ++i) {
      CopyWeight(i);
      Advance();
    }
    const int tile = tile_, block = block_;
    const int count = min(total_ - ahead_, p_.l2_prefetch_bytes / (C::kWarpgroups * kSliceBytes));
    for (int i = 0; i < count; ++i) {
      for (int w = 0; w < C::kWarpgroups; ++w)
        PrefetchBox(p_.weight, K(), b_.Row(p_, b_.cluster + tile_ * b_.clusters, w));
      Advance();
    }
    tile_ = tile, block_ = block;
  }
  __device__ void CopyRest() {
    stream::WaitForEarlierKernels();
    for (int i = 0; i < ahead_; ++i) CopyX(i % b_.num_blocks, i);
    int s = 0;
    uint32_t parity = 0;
    for (int i = ahead_; i < total_; ++i) {
      Wait(b_.Emptied(s), parity);
      CopyWeight(s);
      CopyX(block_, s);
      Advance();
      if (++s == C::kStages) s = 0, parity ^= 1;
    }
  }

 private:
  __device__ int K() const { return (b_.first_block + block_) * kBlockK; }
  __device__ void Advance() {
    if (++block_ == b_.num_blocks) block_ = 0, ++tile_;
  }
  __device__ void CopyWeight(int s) const {
    ArriveExpecting(b_.Filled(s), C::kStageBytes);
#pragma unroll
    for (int w = 0; w < C::kWarpgroups; ++w) {
      CopyBox(b_.Stage(s) + w * kSliceBytes, p_.weight, K(),
              b_.Row(p_, b_.cluster + tile_ * b_.clusters, w), b_.Filled(s));
    }
  }
  __device__ void CopyX(int block, int s) const {
    CopyBox(b_.Stage(s) + C::kWarpgroups * kSliceBytes, p_.x, (b_.first_block + block) * kBlockK, 0,
            b_.Filled(s));
  }

  const Params& p_;
  const Block<C, kGate>& b_;
  int total_, ahead_;         // stages
  int tile_ = 0, block_ = 0;  // of the next one
};

// The sums of 4 tokens of a row over the blocks.
template <typename C>
__device__ float4 SumPartials(const float* partials, int row, int token) {
  float4 sum = {};
#pragma unroll
  for (int source = 0; source < C::kCluster; ++source) {
    const float4 part = *reinterpret_cast<const float4*>(
        partials + (source * C::kOwnRows + row) * C::kSumStride + token);
    sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
  }
  return sum;
}

template <LinearOutput kOutput>
__device__ void Store(const Params& p, int token, int feature, float value) {
  const int64_t at = token * p.out_stride + feature;
  if constexpr (kOutput == LinearOutput::kFloat) {
    static_cast<float*>(p.out)[at] = value;
  } else {
    static_cast<__nv_bfloat16*>(p.out)[at] = __float2bfloat16(value);
  }
}

// The outputs of this block's rows of a tile: own row w * kSlice + i is row rank * kSlice + i of
// warpgroup w's.
template <typename C, LinearOutput kOutput>
__device__ void Finish(const Params& p, const float* partials, int tile, int rank) {
  constexpr bool kGate = kOutput == LinearOutput::kSiluUp;
  constexpr int kOwn = kGate ? C::kSlice : C::kOwnRows;
  for (int i = threadIdx.x; i < kOwn * (C::kTokens / 4); i += C::kConsumers) {
    const int row = i % kOwn, token = i / kOwn * 4;
    const int feature =
        tile * (kGate ? 64 : C::kRows) + row / C::kSlice * 64 + rank * C::kSlice + row % C::kSlice;
    if (feature >= p.n || token >= p.num_tokens) continue;
    const float4 sum = SumPartials<C>(partials, row, token);
    float values[4] = {sum.x, sum.y, sum.z, sum.w};
    if constexpr (kGate) {
      const float4 up = SumPartials<C>(partials, row + C::kSlice, token);
      const float ups[4] = {up.x, up.y, up.z, up.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) values[j] = values[j] / (1.0f + __expf(-values[j])) * ups[j];
    } else {
      const float bias = p.bias != nullptr ? p.bias[feature] : 0.0f;
#pragma unroll
      for (int j = 0; j < 4; ++j) values[j] += bias;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (token + j < p.num_tokens) Store<kOutput>(p, token + j, feature, values[j]);
    }
  }
}

template <typename C, LinearOutput kOutput, bool kGate>
__device__ void Consume(const Params& p, const Block<C, kGate>& b, const float* partials) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warpgroup = warp / 4;
  const int row = warp % 4 * 16;  // of the warpgroup's 64
  const int owner = row / C::kSlice;
  const uint32_t own_row = warpgroup * C::kSlice + row % C::kSlice + lane / 4;
  const uint32_t target =
      b.partials + ((b.rank * C::kOwnRows + own_row) * C::kSumStride + lane % 4 * 2) * 4;
  stream::WaitForEarlierKernels();  // before out is written
  int s = 0;
  uint32_t parity = 0, tile_parity = 0;
  for (int tile = b.cluster; tile < b.tiles; tile += b.clusters) {
    float sums[C::kTokens / 2] = {};
#pragma unroll 1
    for (int block = 0; block < b.num_blocks; ++block) {
      Wait(b.Filled(s), parity);
      const uint64_t weight = Matrix(b.Stage(s) + warpgroup * kSliceBytes);
      const uint64_t x = Matrix(b.Stage(s) + C::kWarpgroups * kSliceBytes);
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
      for (int k = 0; k < kBlockK / 16; ++k)
        MultiplyAll<C::kTokens>(sums, weight + 2 * k, x + 2 * k);
      asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
      asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
      for (float& sum : sums) asm volatile("" : "+f"(sum)::"memory");
      if (lane == 0) Arrive(b.Emptied(s));
      if (++s == C::kStages) s = 0, parity ^= 1;
    }
    if (tile != b.cluster) WaitForBlocks(b.PartialsRead(), tile_parity ^ 1);
#pragma unroll
    for (int j = 0; j < C::kTokens / 8; ++j) {
      StorePairAt(target + j * 32, owner, sums[4 * j], sums[4 * j + 1]);
      StorePairAt(target + j * 32 + 8 * C::kSumStride * 4, owner, sums[4 * j + 2], sums[4 * j + 3]);
    }
    __syncwarp();
    if (lane == 0) ArriveAt(b.PartialsWritten(), owner);
    WaitForBlocks(b.PartialsWritten(), tile_parity);
    Finish<C, kOutput>(p, partials, tile, b.rank);
    // After the last tile nobody waits, and a block may be gone.
    __syncwarp();
    if (tile + b.clusters < b.tiles && lane < C::kCluster) ArriveAt(b.PartialsRead(), lane);
    tile_parity ^= 1;
  }
}
#endif

// Grid: clusters of kCluster blocks; cluster c takes tiles c, c + clusters, .... The last warp
// produces.
template <typename C, LinearOutput kOutput>
__global__ void __launch_bounds__(C::kThreads) Kernel(const __grid_constant__ Params p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr bool kGate = kOutput == LinearOutput::kSiluUp;
  extern __shared__ unsigned char shared[];
  const Block<C, kGate> b(p, stream::SharedAddress(shared));
  const float* const partials =
      reinterpret_cast<const float*>(shared + (b.partials - stream::SharedAddress(shared)));
  const bool producer = threadIdx.x == C::kConsumers;
  Producer<C, kGate> copies(p, b);
  if (producer) {
    for (int s = 0; s < C::kStages; ++s) {
      InitBarrier(b.Filled(s), 1);
      InitBarrier(b.Emptied(s), C::kWarps);
    }
    InitBarrier(b.PartialsWritten(),
                C::kWarps);  // those of all blocks' warps that hold this block's rows
    InitBarrier(b.PartialsRead(), C::kCluster * C::kWarps);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    copies.CopyAhead();
    stream::LetLaterKernelsStart();
  }
  __syncwarp();
  __syncthreads();
  if constexpr (C::kCluster > 1) {  // every block has its barriers
    stream::ArriveAtCluster<C::kCluster>();
    stream::WaitForCluster<C::kCluster>();
  }
  if (producer) copies.CopyRest();
  if (threadIdx.x < C::kConsumers) Consume<C, kOutput, kGate>(p, b, partials);
#else
  __trap();
#endif
}

}  // namespace penstock::kernels::cuda::tile
