// The decode kernel (attention_decode.h). Each warp streams its own slices of 16 (32) tokens
// through its own ring of shared memory stages by cp.async, so the main loop has no block barrier;
// warps meet only at the end of a (row, head).
//
// Per slice S^T = K Q^T and O^T += V^T P^T on the tensor cores: tokens take the 16 rows of
// mma.m16n8k16 and the queries of the group its 8 columns (16 in two), so a group of 4 wastes half
// a product, not three quarters.
#pragma once

#include "kernels/cuda/attention_decode_warp.cuh"
#include "kernels/cuda/vector.cuh"

namespace penstock::kernels::cuda {

// Which blocks share a (row, head): tiles [first, first + count) of the list. A border at distance
// d from its beginning has moved there if d <= min(snap, count / 2), and to its end from a smaller
// distance still (PlanDecodeKernel).
struct DecodeDeal {
  DecodePlanHeader header;
  __device__ int BlockOf(int tile) const {  // before borders are moved
    const int big = header.extra * (header.base + 1);
    return tile < big ? tile / (header.base + 1) : header.extra + (tile - big) / header.base;
  }
  __device__ int FirstBlock(int first, int count) const {
    return BlockOf(first + min(header.snap, count / 2));
  }
  __device__ int LastBlock(int first, int count) const {
    return BlockOf(first + count - 1 - min(header.snap, (count - 1) / 2));
  }
};

// Merges the partial results that blocks [first, last] left of one (row, head), and writes its
// output.
template <int kHeadSize, int kThreads>
__device__ void MergePartials(const DecodeKernelParams& p, int row, int head, int first, int last) {
  constexpr int kQuads = kHeadSize / 4;
  constexpr int kBatch = 8;  // partial results whose loads are in flight together
  for (int index = threadIdx.x; index < p.group * kQuads; index += kThreads) {
    const int query = index / kQuads;
    float4 out = {0, 0, 0, 0};
    float maximum = -INFINITY, sum = 0;
    for (int block = first; block <= last; block += kBatch) {
      float2 stats[kBatch];
      float4 part[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        stats[b] = {-INFINITY, 0};
        part[b] = {0, 0, 0, 0};
        if (block + b > last) continue;
        const int64_t slot = 2 * (block + b) + (block + b == first ? 1 : 0);
        stats[b] = __ldcg(p.workspace.partial_stats + slot * p.group + query);
        part[b] = __ldcg(reinterpret_cast<const float4*>(p.workspace.partial_out) +
                         slot * p.group * kQuads + index);
      }
      float now = maximum;
#pragma unroll
      for (int b = 0; b < kBatch; ++b) now = fmaxf(now, stats[b].x);
      const float shrink = Exp2(maximum - now);
      out = {out.x * shrink, out.y * shrink, out.z * shrink, out.w * shrink};
      sum *= shrink;
      maximum = now;
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const float weight = Exp2(stats[b].x - now);
        out.x += weight * part[b].x;
        out.y += weight * part[b].y;
        out.z += weight * part[b].z;
        out.w += weight * part[b].w;
        sum += weight * stats[b].y;
      }
    }
    const float scale = 1 / sum;
    const uint2 packed = {PackBf16(out.x * scale, out.y * scale),
                          PackBf16(out.z * scale, out.w * scale)};
    reinterpret_cast<uint2*>(
        p.out)[(static_cast<int64_t>(row) * p.num_kv_heads + head) * p.group * kQuads + index] =
        packed;
  }
}

// The end of a (row, head), or of the block's piece of it: tiles [from, to) of num_tiles.
template <typename Shape, int kHeadSize, int kQueryTiles>
__device__ void FinishPiece(const DecodeKernelParams& p, const DecodeDeal& deal,
                            WarpState<Shape, kHeadSize, kQueryTiles>& state, float* merge, int row,
                            int head, int pair_first, int from, int to, int num_tiles) {
  constexpr int kQuads = kHeadSize / 4;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float2* stats =
      reinterpret_cast<float2*>(merge + (Shape::kThreads / 32) * p.group * Shape::kMergeRow);
  bool* is_last = reinterpret_cast<bool*>(stats + (Shape::kThreads / 32) * Shape::kQueries);
  __syncthreads();  // the last piece has been read from `merge`
#pragma unroll
  for (int j = 0; j < kQueryTiles; ++j) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int query = j * 8 + lane % 4 * 2 + c;
      float sum = state.sum[j][c];
#pragma unroll
      for (int mask = 4; mask < 32; mask *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
      if (lane < 4) stats[warp * Shape::kQueries + query] = {state.maximum[j][c], sum};
      if (query >= p.group) continue;
      float* to_row = merge + (warp * p.group + query) * Shape::kMergeRow + lane / 4;
#pragma unroll
      for (int i = 0; i < kHeadSize / 16; ++i) {
        to_row[i * 16] = state.out[i][j][c];
        to_row[i * 16 + 8] = state.out[i][j][2 + c];
      }
    }
  }
  __syncthreads();
  const bool whole = from == 0 && to == num_tiles;
  const int first_block = whole ? 0 : deal.FirstBlock(pair_first, num_tiles);
  const int64_t slot = 2 * blockIdx.x + (static_cast<int>(blockIdx.x) == first_block ? 1 : 0);
  for (int index = threadIdx.x; index < p.group * kQuads; index += Shape::kThreads) {
    const int query = index / kQuads, quad = index % kQuads;
    float maximum = -INFINITY;
#pragma unroll
    for (int w = 0; w < Shape::kThreads / 32; ++w) {
      maximum = fmaxf(maximum, stats[w * Shape::kQueries + query].x);
    }
    const float origin = maximum == -INFINITY ? 0 : maximum;  // no token at all: every weight is 0
    float4 out = {0, 0, 0, 0};
    float sum = 0;
#pragma unroll
    for (int w = 0; w < Shape::kThreads / 32; ++w) {
      const float2 of_warp = stats[w * Shape::kQueries + query];
      const float weight = Exp2(of_warp.x - origin);
      const float4 o = *reinterpret_cast<const float4*>(
          merge + (w * p.group + query) * Shape::kMergeRow + quad * 4);
      out.x += weight * o.x;
      out.y += weight * o.y;
      out.z += weight * o.z;
      out.w += weight * o.w;
      sum += weight * of_warp.y;
    }
    if (whole) {
      const float scale = sum > 0 ? 1 / sum : 0;
      const uint2 packed = {PackBf16(out.x * scale, out.y * scale),
                            PackBf16(out.z * scale, out.w * scale)};
      reinterpret_cast<uint2*>(
          p.out)[(static_cast<int64_t>(row) * p.num_kv_heads + head) * p.group * kQuads + index] =
          packed;
    } else {
      reinterpret_cast<float4*>(p.workspace.partial_out)[slot * p.group * kQuads + index] = out;
      if (quad == 0) p.workspace.partial_stats[slot * p.group + query] = {maximum, sum};
    }
  }
  if (whole) return;
  const int last_block = deal.LastBlock(pair_first, num_tiles);
  __syncthreads();
  if (threadIdx.x == 0) {
    int32_t* arrivals = p.workspace.arrivals + row * p.num_kv_heads + head;
    // After the block's partial results (the barrier makes the release cover all its threads'), and
    // before others'.
    int before;
    asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], 1;"
                 : "=r"(before)
                 : "l"(arrivals)
                 : "memory");
    *is_last = before == last_block - first_block;
    if (*is_last) *arrivals = 0;  // for the next layer
  }
  __syncthreads();
  if (*is_last) {
    MergePartials<kHeadSize, Shape::kThreads>(p, row, head, first_block, last_block);
  }
}

template <int kHeadSize, int kQueryTiles, int kWarps, int kStages>
__global__ void __launch_bounds__(kWarps * 32)
    DecodeKernel(const __grid_constant__ DecodeKernelParams p) {
  using Shape = DecodeShape<kHeadSize, kQueryTiles, kWarps, kStages>;
  extern __shared__ __align__(128) char shared_memory[];
  LetNextStart();
  // The plan and what it was made of are complete when any kernel after PlanDecode starts; __ldcg,
  // since the L1 cache may be older.
  const int4* plan = reinterpret_cast<const int4*>(p.workspace.starts + blockIdx.x);
  const int4 where = __ldcg(plan), what = __ldcg(plan + 1);
  const int4 header = __ldcg(reinterpret_cast<const int4*>(p.workspace.header));
  const DecodeBlockStart start = {where.x, where.y, where.z, where.w, what.x, what.y, what.z};
  const DecodeDeal deal = {{header.x, header.y, header.z}};
  if (start.count == 0) return;

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t ring = SharedAddress(shared_memory) + warp * Shape::kWarpBytes;
  float* merge = reinterpret_cast<float*>(shared_memory + Shape::kRingBytes);

  // Keys and values of earlier steps are copied while the kernel that writes this step's still
  // runs.
  SliceLoader<Shape, kHeadSize> loader(p, start, warp, lane);
  int early = 0;
  while (early < kStages && !loader.has_new_token()) {
    loader.Next(ring + early * 2 * Shape::kSliceBytes);
    CommitCopies();
    ++early;
  }
  WaitForEarlier();
  for (int i = early; i < kStages; ++i) {
    loader.Next(ring + i * 2 * Shape::kSliceBytes);
    CommitCopies();
  }

  TileCursor<Shape> at(start);
  uint32_t q[kHeadSize / 16][kQueryTiles][2], next_q[kHeadSize / 16][kQueryTiles][2];
  LoadQueries<kHeadSize, kQueryTiles>(next_q, p, at.row, at.head, lane);
  WarpState<Shape, kHeadSize, kQueryTiles> state;
  int piece_from = at.tile;
  int stage = 0;
  bool new_piece = true;
  for (int i = 0; i < start.count; ++i) {
    if (new_piece) {
      state.Clear();
#pragma unroll
      for (int step = 0; step < kHeadSize / 16; ++step) {
#pragma unroll
        for (int j = 0; j < kQueryTiles; ++j) {
          q[step][j][0] = next_q[step][j][0];
          q[step][j][1] = next_q[step][j][1];
        }
      }
      const bool row_ends = at.head + 1 == p.num_kv_heads;
      if (i + at.num_tiles - at.tile < start.count) {  // another piece follows: its queries now
        LoadQueries<kHeadSize, kQueryTiles>(next_q, p, at.row + row_ends,
                                            row_ends ? 0 : at.head + 1, lane);
      }
    }
    WaitForCopies<kStages - 1>();
    __syncwarp();  // every lane's copies of the slice are there
    const int valid = at.context - (at.tile * Shape::kTile + warp * Shape::kSlice);
    if (valid > 0) {
      state.Add(ring + stage * 2 * Shape::kSliceBytes, q, valid, p.scale_log2, lane);
    }
    __syncwarp();  // every lane has read it
    loader.Next(ring + stage * 2 * Shape::kSliceBytes);
    CommitCopies();
    stage = stage + 1 == kStages ? 0 : stage + 1;
    if (at.tile + 1 == at.num_tiles || i + 1 == start.count) {
      FinishPiece<Shape, kHeadSize, kQueryTiles>(p, deal, state, merge, at.row, at.head,
                                                 start.first + i - at.tile, piece_from, at.tile + 1,
                                                 at.num_tiles);
      piece_from = 0;
    }
    new_piece = at.Advance(p, i + 1 < start.count);
  }
}

}  // namespace penstock::kernels::cuda
