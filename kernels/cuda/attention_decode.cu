#include <algorithm>
#include <bit>

#include "kernels/cuda/attention_decode_kernel.cuh"
#include "kernels/cuda/device.h"

namespace penstock::kernels::cuda {
namespace {

constexpr int kPlanThreads = 1024;
constexpr DecodeVariant kVariants[] = {{8, 3, 1}, {4, 2, 3}, {4, 3, 2}};

struct PlanParams {
  const int32_t* context_len = nullptr;
  const int32_t* slot_of_token = nullptr;
  int64_t page_table_stride = 0;
  int32_t num_rows = 0;
  int32_t num_kv_heads = 0;
  int32_t tile_tokens = 0;
  int32_t snap = 0;
  int32_t grid = 0;
  DecodeWorkspace workspace;
};

// Exclusive prefix sum over the block's threads; `total` is the sum of all.
__device__ int PrefixSum(int value, int* total) {
  __shared__ int of_warp[kPlanThreads / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int sum = value;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int below = __shfl_up_sync(0xffffffffu, sum, step);
    if (lane >= step) sum += below;
  }
  if (lane == 31) of_warp[warp] = sum;
  __syncthreads();
  if (warp == 0) {
    int all = of_warp[lane];
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int below = __shfl_up_sync(0xffffffffu, all, step);
      if (lane >= step) all += below;
    }
    of_warp[lane] = all;
  }
  __syncthreads();
  *total = of_warp[kPlanThreads / 32 - 1];
  return sum - value + (warp > 0 ? of_warp[warp - 1] : 0);
}

// Where block `block` begins: an even share, moved to the nearer end of the (row, head) it falls
// into if that is not far.
__device__ DecodeBlockStart StartOf(const PlanParams& p, const DecodePlanHeader& header,
                                    const int* tiles_before, int block) {
  int first = block * header.base + min(block, header.extra);
  int row = 0;  // the last one whose tiles begin at or before `first`
  for (int low = 0, high = p.num_rows - 1; low <= high;) {
    const int middle = (low + high) / 2;
    if (tiles_before[middle] * p.num_kv_heads <= first) {
      row = middle;
      low = middle + 1;
    } else {
      high = middle - 1;
    }
  }
  const int in_row = first - tiles_before[row] * p.num_kv_heads;
  const int of_head = tiles_before[row + 1] - tiles_before[row];
  int head = in_row / of_head, tile = in_row % of_head;
  if (tile <= min(header.snap, of_head / 2)) {
    first -= tile;
    tile = 0;
  } else if (of_head - tile <= min(header.snap, (of_head - 1) / 2)) {
    first += of_head - tile;
    tile = 0;
    if (++head == p.num_kv_heads) {
      head = 0;
      ++row;  // of no tile if this was the last, and then the block has none either
    }
  }
  return {min(row, p.num_rows - 1), head, tile, 0, first};
}

// One block. tiles_before[r] is the number of tiles of one KV head in rows [0, r).
__global__ void __launch_bounds__(kPlanThreads)
    PlanDecodeKernel(const __grid_constant__ PlanParams p) {
  extern __shared__ int tiles_before[];  // [num_rows + 1]
  WaitForEarlier();
  const int per_thread = (p.num_rows + kPlanThreads - 1) / kPlanThreads;
  const int begin = min(p.num_rows, static_cast<int>(threadIdx.x) * per_thread);
  const int end = min(p.num_rows, begin + per_thread);
  // A row of no tokens has a tile too, in which its zeros are written.
  auto tiles_of = [&](int row) {
    return max(1, (p.context_len[row] + p.tile_tokens - 1) / p.tile_tokens);
  };
  int mine = 0;
  for (int row = begin; row < end; ++row) mine += tiles_of(row);
  int total = 0;
  int before = PrefixSum(mine, &total);
  for (int row = begin; row < end; ++row) {
    tiles_before[row] = before;
    before += tiles_of(row);
  }
  if (threadIdx.x == 0) tiles_before[p.num_rows] = total;
  __syncthreads();

  const int num_tiles = total * p.num_kv_heads;
  const int num_blocks = min(p.grid, num_tiles);
  const DecodePlanHeader header = {num_tiles / num_blocks, num_tiles % num_blocks, p.snap};
  if (threadIdx.x == 0) *p.workspace.header = header;
  for (int block = threadIdx.x; block < p.grid; block += kPlanThreads) {
    DecodeBlockStart start;
    if (block < num_blocks) {
      start = StartOf(p, header, tiles_before, block);
      const int end =
          block + 1 == num_blocks ? num_tiles : StartOf(p, header, tiles_before, block + 1).first;
      start.count = end - start.first;
      start.context = p.context_len[start.row];
      start.pages = static_cast<int>(p.slot_of_token[start.row] * p.page_table_stride);
    }
    p.workspace.starts[block] = start;
  }
  __threadfence();
}

using DecodeFunction = void (*)(DecodeKernelParams);
struct DecodeEntry {
  DecodeFunction function = nullptr;
  int shared_bytes = 0;
};

template <int kHeadSize, int kQueryTiles, int kVariant>
DecodeEntry Entry(int group) {
  constexpr DecodeVariant v = kVariants[kVariant];
  using Shape = DecodeShape<kHeadSize, kQueryTiles, v.num_warps, v.num_stages>;
  return {DecodeKernel<kHeadSize, kQueryTiles, v.num_warps, v.num_stages>,
          Shape::SharedBytes(group)};
}

template <int kHeadSize>
DecodeEntry FindKernelOf(const DecodeConfig& c) {
  const int group = c.group();
  if (group > 8) {  // the wide kernel's merge doesn't fit in shared memory
    return c.variant == kDeepDecode ? Entry<kHeadSize, 2, kDeepDecode>(group) : DecodeEntry{};
  }
  if (c.variant == kWideDecode) return Entry<kHeadSize, 1, kWideDecode>(group);
  if (c.variant == kDeepDecode) return Entry<kHeadSize, 1, kDeepDecode>(group);
  if (kHeadSize == 128) return Entry<128, 1, 2>(group);  // to be measured against
  return {};
}

DecodeEntry FindKernel(const DecodeConfig& c) {
  if (c.group() < 1 || c.group() > 16) return {};
  if (c.head_size == 128) return FindKernelOf<128>(c);
  if (c.head_size == 64) return FindKernelOf<64>(c);
  return {};
}

size_t Aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

std::span<const DecodeVariant> DecodeVariants() { return kVariants; }

size_t DecodeWorkspaceBytes(const DecodeConfig& c) {
  const size_t grid = c.grid(), pieces = 2 * grid * c.group();
  return Aligned(sizeof(DecodePlanHeader)) + Aligned(grid * sizeof(DecodeBlockStart)) +
         Aligned(size_t{4} * c.max_rows * c.num_kv_heads) + Aligned(pieces * c.head_size * 4) +
         Aligned(pieces * sizeof(float2));
}

DecodeWorkspace LayOutDecodeWorkspace(const DecodeConfig& c, void* memory) {
  const size_t grid = c.grid(), pieces = 2 * grid * c.group();
  char* at = static_cast<char*>(memory);
  auto take = [&]<typename T>(T*& pointer, size_t count) {
    pointer = reinterpret_cast<T*>(at);
    at += Aligned(count * sizeof(T));
  };
  DecodeWorkspace w;
  take(w.header, 1);
  take(w.starts, grid);
  take(w.arrivals, static_cast<size_t>(c.max_rows) * c.num_kv_heads);
  take(w.partial_out, pieces * c.head_size);
  take(w.partial_stats, pieces);
  return w;
}

int32_t DecodeSharedBytes(const DecodeConfig& c) { return FindKernel(c).shared_bytes; }

absl::Status PrepareDecode(const DecodeConfig& c) {
  const DecodeEntry entry = FindKernel(c);
  if (entry.function == nullptr) {
    return Unimplemented(
        "no decode attention for head size {} with {} query heads a KV head (variant {}): the GPU "
        "engine has head sizes 64 and 128, and up to 16 heads",
        c.head_size, c.group(), c.variant);
  }
  if (!std::has_single_bit(static_cast<uint32_t>(c.page_size)) || c.page_size < 8) {
    return InvalidArgument("page size {} is not a power of two of 8 or more", c.page_size);
  }
  PENSTOCK_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(entry.function),
                                     cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     entry.shared_bytes));
  return absl::OkStatus();
}

absl::Status PlanDecode(const DecodeConfig& c, const DecodeWorkspace& workspace,
                        const BatchRows& batch, cudaStream_t stream) {
  if (batch.num_single == 0) return absl::OkStatus();
  PlanParams p;
  p.context_len = batch.context_len;
  p.slot_of_token = batch.slot_of_token;
  p.page_table_stride = batch.page_table_stride;
  p.num_rows = batch.num_single;
  p.num_kv_heads = c.num_kv_heads;
  p.tile_tokens = c.tile_tokens();
  p.snap = c.snap_tokens / c.tile_tokens();
  p.grid = c.grid();
  p.workspace = workspace;
  const size_t shared = 4 * (static_cast<size_t>(p.num_rows) + 1);
  return LaunchDependent(stream, {dim3(1), dim3(kPlanThreads), shared}, PlanDecodeKernel, p);
}

absl::Status Decode(const DecodeConfig& c, const DecodeWorkspace& workspace,
                    const AttentionParams& a, cudaStream_t stream) {
  const BatchRows& batch = *a.batch;
  if (batch.num_single == 0) return absl::OkStatus();
  const DecodeEntry entry = FindKernel(c);
  DecodeKernelParams p;
  p.q = static_cast<const __nv_bfloat16*>(a.q);
  p.q_stride = a.q_stride;
  p.out = static_cast<__nv_bfloat16*>(a.out);
  p.k = static_cast<const __nv_bfloat16*>(a.kv.k);
  p.v = static_cast<const __nv_bfloat16*>(a.kv.v);
  p.context_len = batch.context_len;
  p.slot_of_token = batch.slot_of_token;
  p.page_table = batch.page_table;
  p.page_table_stride = batch.page_table_stride;
  p.workspace = workspace;
  p.num_kv_heads = c.num_kv_heads;
  p.group = c.group();
  p.page_shift = std::countr_zero(static_cast<uint32_t>(c.page_size));
  p.scale_log2 = a.scale * 1.44269504088896341f;
  const LaunchShape shape{dim3(c.grid()), dim3(DecodeVariants()[c.variant].num_warps * 32),
                          static_cast<size_t>(entry.shared_bytes)};
  return LaunchDependent(stream, shape, entry.function, p);
}

}  // namespace penstock::kernels::cuda
