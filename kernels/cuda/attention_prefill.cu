// The portable prefill kernel (FlashAttention-2: Dao, 2023): mma.m16n8k16, cp.async, two stages.
#include <bit>
#include <cmath>

#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/attention_prefill.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/vector.cuh"

namespace penstock::kernels::cuda {
namespace {

constexpr int kWarps = 8;  // of 16 queries
constexpr int kThreads = kWarps * 32;
constexpr int kTileTokens = 64;
static_assert(kWarps * 16 == kPortableTileQueries);

struct PrefillKernelParams {
  const __nv_bfloat16* q = nullptr;
  int64_t q_stride = 0;
  __nv_bfloat16* out = nullptr;
  const __nv_bfloat16* k = nullptr;
  const __nv_bfloat16* v = nullptr;
  const int32_t* page_table = nullptr;
  PrefillItems items;
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t page_shift = 0;
  float scale_log2 = 0;
};

struct Item {
  int tile, head, kv_head, token_begin, query_len, context_len, first_page;
  int first_query;  // of the tile, in the row
  int position;     // of that query
  int num_tiles;    // of tokens
};

template <int kHeadSize>
constexpr int SharedBytes() {
  return (kPortableTileQueries + 4 * kTileTokens) * kHeadSize * 2;
}

// Rows of kHeadSize elements; 16-byte chunks are swizzled so that ldmatrix meets no bank conflict.
template <int kHeadSize>
__device__ __forceinline__ uint32_t ChunkAddress(uint32_t base, int row, int chunk) {
  return base + row * (kHeadSize * 2) + ((chunk ^ (row & 7)) << 4);
}

template <int kHeadSize>
__device__ void CopyQueries(const PrefillKernelParams& p, const Item& item, uint32_t shared) {
  constexpr int kChunks = kHeadSize / 8;
  for (int i = threadIdx.x; i < kPortableTileQueries * kChunks; i += kThreads) {
    const int query = i / kChunks, chunk = i % kChunks;
    const bool valid = item.first_query + query < item.query_len;
    const int64_t token = item.token_begin + (valid ? item.first_query + query : 0);
    CopyAsync16(ChunkAddress<kHeadSize>(shared, query, chunk),
                p.q + token * p.q_stride + item.head * kHeadSize + chunk * 8, valid);
  }
}

template <int kHeadSize>
__device__ void CopyTokens(const PrefillKernelParams& p, const Item& item, int tile,
                           uint32_t shared) {
  constexpr int kChunks = kHeadSize / 8;
#pragma unroll
  for (int i = 0; i < kTileTokens * kChunks / kThreads; ++i) {
    const int index = i * kThreads + threadIdx.x;
    const int line = index / kChunks, chunk = index % kChunks;
    const int token = tile * kTileTokens + line;
    const bool valid = token < item.context_len;
    int64_t offset = 0;
    if (valid) {
      const int64_t page = p.page_table[item.first_page + (token >> p.page_shift)];
      offset = (((page * p.num_kv_heads + item.kv_head) << p.page_shift) +
                (token & ((1 << p.page_shift) - 1))) *
                   kHeadSize +
               chunk * 8;
    }
    const uint32_t to = ChunkAddress<kHeadSize>(shared, line, chunk);
    CopyAsync16(to, p.k + offset, valid);
    CopyAsync16(to + kTileTokens * kHeadSize * 2, p.v + offset, valid);
  }
}

// The softmax state of a warp's 16 queries: row lane / 4 (c = 0) and that + 8 (c = 1) are a lane's.
template <int kHeadSize>
struct QueryState {
  float out[kHeadSize / 8][4];
  float maximum[2];
  float sum[2];  // of this lane's columns

  __device__ void Clear() {
#pragma unroll
    for (int i = 0; i < kHeadSize / 8; ++i) {
#pragma unroll
      for (int c = 0; c < 4; ++c) out[i][c] = 0;
    }
    maximum[0] = maximum[1] = -INFINITY;
    sum[0] = sum[1] = 0;
  }

  // Adds 64 tokens from `first_token`; `position` is that of this lane's first query.
  __device__ void Add(const uint32_t (&q)[kHeadSize / 16][4], uint32_t shared, int first_token,
                      int position, bool masked, float scale_log2, int lane) {
    float s[kTileTokens / 8][4] = {};
#pragma unroll
    for (int step = 0; step < kHeadSize / 16; ++step) {
#pragma unroll
      for (int n = 0; n < kTileTokens / 16; ++n) {
        uint32_t b[4];
        LoadMatrix4(b, ChunkAddress<kHeadSize>(shared, n * 16 + lane % 8 + lane / 16 * 8,
                                               step * 2 + lane / 8 % 2));
        MultiplyAdd(s[2 * n], q[step], b[0], b[1]);
        MultiplyAdd(s[2 * n + 1], q[step], b[2], b[3]);
      }
    }
    Softmax(s, first_token, position, masked, scale_log2, lane);
    const uint32_t values = shared + kTileTokens * kHeadSize * 2;
#pragma unroll
    for (int step = 0; step < kTileTokens / 16; ++step) {
      const uint32_t a[4] = {PackBf16(s[2 * step][0], s[2 * step][1]),
                             PackBf16(s[2 * step][2], s[2 * step][3]),
                             PackBf16(s[2 * step + 1][0], s[2 * step + 1][1]),
                             PackBf16(s[2 * step + 1][2], s[2 * step + 1][3])};
#pragma unroll
      for (int n = 0; n < kHeadSize / 16; ++n) {
        uint32_t b[4];
        LoadMatrix4Transposed(
            b, ChunkAddress<kHeadSize>(values, step * 16 + lane % 16, n * 2 + lane / 16));
        MultiplyAdd(out[2 * n], a, b[0], b[1]);
        MultiplyAdd(out[2 * n + 1], a, b[2], b[3]);
      }
    }
  }

  // Scores become weights.
  __device__ void Softmax(float (&s)[kTileTokens / 8][4], int first_token, int position,
                          bool masked, float scale_log2, int lane) {
    float top[2] = {maximum[0], maximum[1]};
#pragma unroll
    for (int n = 0; n < kTileTokens / 8; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        s[n][c] *= scale_log2;
        const int token = first_token + n * 8 + lane % 4 * 2 + c % 2;
        if (masked && token > position + c / 2 * 8) s[n][c] = -INFINITY;
        top[c / 2] = fmaxf(top[c / 2], s[n][c]);
      }
    }
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      top[c] = fmaxf(top[c], __shfl_xor_sync(0xffffffffu, top[c], 1));
      top[c] = fmaxf(top[c], __shfl_xor_sync(0xffffffffu, top[c], 2));
      const float shrink = Exp2(maximum[c] - top[c]);  // top is finite: every query sees token 0
      maximum[c] = top[c];
      sum[c] *= shrink;
#pragma unroll
      for (int i = 0; i < kHeadSize / 8; ++i) {
        out[i][c * 2] *= shrink;
        out[i][c * 2 + 1] *= shrink;
      }
    }
#pragma unroll
    for (int n = 0; n < kTileTokens / 8; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        s[n][c] = Exp2(s[n][c] - maximum[c / 2]);
        sum[c / 2] += s[n][c];
      }
    }
  }
};

__device__ Item LoadItem(const PrefillKernelParams& p, int index) {
  Item item;
  item.tile = p.items.tile[index];
  item.head = p.items.head[index];
  item.kv_head = item.head / (p.num_heads / p.num_kv_heads);
  item.token_begin = p.items.token_begin[index];
  item.query_len = p.items.query_len[index];
  item.context_len = p.items.context_len[index];
  item.first_page = p.items.first_page[index];
  item.first_query = item.tile * kPortableTileQueries;
  item.position = item.context_len - item.query_len + item.first_query;
  const int seen = min(item.context_len, item.position + kPortableTileQueries);
  item.num_tiles = (seen + kTileTokens - 1) / kTileTokens;
  return item;
}

template <int kHeadSize>
__device__ void StoreOutput(const PrefillKernelParams& p, const Item& item,
                            QueryState<kHeadSize>& state, int warp, int lane) {
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    float sum = state.sum[c];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const int query = item.first_query + warp * 16 + lane / 4 + c * 8;
    if (query >= item.query_len) continue;
    const float scale = 1 / sum;
    uint32_t* to = reinterpret_cast<uint32_t*>(
        p.out +
        (static_cast<int64_t>(item.token_begin + query) * p.num_heads + item.head) * kHeadSize);
#pragma unroll
    for (int i = 0; i < kHeadSize / 8; ++i) {
      to[i * 4 + lane % 4] = PackBf16(state.out[i][c * 2] * scale, state.out[i][c * 2 + 1] * scale);
    }
  }
}

template <int kHeadSize>
__global__ void __launch_bounds__(kThreads)
    PrefillKernel(const __grid_constant__ PrefillKernelParams p) {
  extern __shared__ __align__(128) char shared_memory[];
  LetNextStart();
  WaitForEarlier();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t queries = SharedAddress(shared_memory);
  const uint32_t tokens = queries + kPortableTileQueries * kHeadSize * 2;
  constexpr int kStageBytes = 2 * kTileTokens * kHeadSize * 2;
  const int end = p.items.first_item[blockIdx.x + 1];
  for (int index = p.items.first_item[blockIdx.x]; index < end; ++index) {
    const Item item = LoadItem(p, index);
    __syncthreads();  // the last item's tokens and queries have been read
    CopyQueries<kHeadSize>(p, item, queries);
    CopyTokens<kHeadSize>(p, item, 0, tokens);
    CommitCopies();
    QueryState<kHeadSize> state;
    state.Clear();
    uint32_t q[kHeadSize / 16][4];
    const int first = item.position + warp * 16;  // the warp's first query's position
    for (int tile = 0; tile < item.num_tiles; ++tile) {
      WaitForCopies<0>();
      __syncthreads();  // this tile is there, and the one before has been read
      if (tile + 1 < item.num_tiles) {
        CopyTokens<kHeadSize>(p, item, tile + 1, tokens + (tile + 1) % 2 * kStageBytes);
        CommitCopies();
      }
      if (tile == 0) {
#pragma unroll
        for (int step = 0; step < kHeadSize / 16; ++step) {
          LoadMatrix4(q[step], ChunkAddress<kHeadSize>(queries, warp * 16 + lane % 16,
                                                       step * 2 + lane / 16));
        }
      }
      const int first_token = tile * kTileTokens;
      if (first_token > first + 15) continue;  // all of it is after the warp's queries
      const bool masked = first_token + kTileTokens - 1 > first;
      state.Add(q, tokens + tile % 2 * kStageBytes, first_token, first + lane / 4, masked,
                p.scale_log2, lane);
    }
    StoreOutput<kHeadSize>(p, item, state, warp, lane);
  }
}

struct LocateParams {
  PrefillItems items;
  int32_t num_items = 0;
  const int32_t* slot_of_token = nullptr;
  int64_t page_table_stride = 0;
};

__global__ void LocatePagesKernel(const __grid_constant__ LocateParams p) {
  WaitForEarlier();
  const int item = blockIdx.x * blockDim.x + threadIdx.x;
  if (item >= p.num_items) return;
  p.items.first_page[item] =
      static_cast<int32_t>(p.slot_of_token[p.items.token_begin[item]] * p.page_table_stride);
}

using PrefillFunction = void (*)(PrefillKernelParams);
struct PrefillEntry {
  PrefillFunction function = nullptr;
  int shared_bytes = 0;
};

PrefillEntry FindKernel(int head_size) {
  if (head_size == 128) return {PrefillKernel<128>, SharedBytes<128>()};
  if (head_size == 64) return {PrefillKernel<64>, SharedBytes<64>()};
  return {};
}

}  // namespace

absl::Status LocatePrefillPages(const PrefillItems& items, size_t num_items, const BatchRows& batch,
                                cudaStream_t stream) {
  LocateParams p;
  p.items = items;
  p.num_items = static_cast<int32_t>(num_items);
  p.slot_of_token = batch.slot_of_token;
  p.page_table_stride = batch.page_table_stride;
  const unsigned blocks = static_cast<unsigned>((num_items + 255) / 256);
  return LaunchDependent(stream, {dim3(blocks), dim3(256), 0}, LocatePagesKernel, p);
}

absl::StatusOr<int32_t> PreparePortablePrefill(const PrefillConfig& c) {
  const PrefillEntry entry = FindKernel(c.head_size);
  if (entry.function == nullptr) {
    return Unimplemented("no prefill attention for head size {}: the GPU engine has 64 and 128",
                         c.head_size);
  }
  PENSTOCK_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(entry.function),
                                     cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     entry.shared_bytes));
  int blocks = 0;
  PENSTOCK_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, entry.function, kThreads,
                                                              entry.shared_bytes));
  return blocks;
}

absl::Status PortablePrefill(const PrefillConfig& c, const PrefillItems& items,
                             const AttentionParams& a, cudaStream_t stream) {
  const PrefillEntry entry = FindKernel(c.head_size);
  PrefillKernelParams p;
  p.q = static_cast<const __nv_bfloat16*>(a.q);
  p.q_stride = a.q_stride;
  p.out = static_cast<__nv_bfloat16*>(a.out);
  p.k = static_cast<const __nv_bfloat16*>(a.kv.k);
  p.v = static_cast<const __nv_bfloat16*>(a.kv.v);
  p.page_table = a.batch->page_table;
  p.items = items;
  p.num_heads = c.num_heads;
  p.num_kv_heads = c.num_kv_heads;
  p.page_shift = std::countr_zero(static_cast<uint32_t>(c.page_size));
  p.scale_log2 = a.scale * 1.44269504088896341f;
  return LaunchDependent(
      stream, {dim3(c.num_blocks), dim3(kThreads), static_cast<size_t>(entry.shared_bytes)},
      entry.function, p);
}

}  // namespace penstock::kernels::cuda
