// Decode attention: rows of one token over paged keys and values (flash decoding: Dao et al.,
// 2023), in CUDA graphs.
//
// The work of a layer is a list of tiles: (row, KV head, tile of tokens), row by row, head by head.
// A kernel of a fixed grid deals the list to its blocks, each a contiguous part of about the same
// size (stream-K: Osama et al., 2023), so that any mix of context lengths is balanced and no plan
// is made on the host. Parts end at the border of a (row, head) where one is near; a (row, head)
// that is cut all the same leaves a partial result in each of its blocks, and the last block to
// arrive merges them in order. A block has at most two cut pieces, so the space for partial results
// doesn't depend on the batch.
//
// PlanDecode runs once a step, Decode in every layer.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kernels/ops.h"

namespace penstock::kernels::cuda {

// A choice of the kernel's shape. A tile is num_warps slices of 16 tokens (32 at head size 64), a
// slice a warp.
struct DecodeVariant {
  int32_t num_warps = 0;
  int32_t num_stages = 0;     // slices a warp has in flight or in use
  int32_t blocks_per_sm = 0;  // what the grid is sized for
};
std::span<const DecodeVariant> DecodeVariants();
// The best for few (row, head) and for many.
constexpr int kWideDecode = 0;
constexpr int kDeepDecode = 1;

struct DecodePlanHeader {
  int32_t base = 0;   // tiles a block, before borders are moved
  int32_t extra = 0;  // blocks [0, extra) have one more
  int32_t snap = 0;   // a border moves by up to so many tiles to the next border of a (row, head)
  int32_t unused = 0;
};
struct DecodeBlockStart {  // where a block's part begins
  int32_t row = 0;
  int32_t head = 0;     // KV head
  int32_t tile = 0;     // of (row, head)
  int32_t count = 0;    // tiles; 0: none
  int32_t first = 0;    // the part's place in the list
  int32_t context = 0;  // of the row
  int32_t pages = 0;    // where the row's pages begin in the page table
  int32_t unused = 0;
};

// Where things lie in device memory. Zeroed once at set-up; the kernels leave `arrivals` zero
// behind them.
struct DecodeWorkspace {
  DecodePlanHeader* header = nullptr;
  DecodeBlockStart* starts = nullptr;  // [grid blocks]
  int32_t* arrivals = nullptr;         // [max_rows * G]
  float* partial_out = nullptr;        // [2 * grid blocks, group, E]
  float2* partial_stats = nullptr;     // [2 * grid blocks, group]: maximum (base 2) and sum
};

struct DecodeConfig {
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_size = 0;  // 64 or 128
  int32_t page_size = 0;  // a power of two >= 8
  int32_t max_rows = 0;
  int32_t num_sms = 0;
  int32_t variant = kDeepDecode;
  int32_t snap_tokens =
      128;  // how far a border moves to spare a cut: a merge takes as long as about so many tokens

  int32_t group() const { return num_heads / num_kv_heads; }
  // With more than 8 heads a group, shared memory holds fewer blocks.
  int32_t grid() const {
    return num_sms * std::min(group() > 8 ? 2 : 16, DecodeVariants()[variant].blocks_per_sm);
  }
  int32_t tile_tokens() const {
    return DecodeVariants()[variant].num_warps * (head_size == 64 ? 32 : 16);
  }
};

size_t DecodeWorkspaceBytes(const DecodeConfig& config);
DecodeWorkspace LayOutDecodeWorkspace(const DecodeConfig& config, void* memory);
// Of a block; 0 where there is no kernel.
int32_t DecodeSharedBytes(const DecodeConfig& config);
// Raises the kernel's shared memory limit; before the first launch. UNIMPLEMENTED names what there
// is no kernel for.
absl::Status PrepareDecode(const DecodeConfig& config);

// Deals rows [0, batch.num_single). Doesn't trigger the next kernel's early start: what runs after
// it may therefore read the plan, context lengths, slots and page table before it waits for earlier
// kernels.
absl::Status PlanDecode(const DecodeConfig& config, const DecodeWorkspace& workspace,
                        const BatchRows& batch, cudaStream_t stream);
// A row of context length 0 gets zeros.
absl::Status Decode(const DecodeConfig& config, const DecodeWorkspace& workspace,
                    const AttentionParams& params, cudaStream_t stream);

}  // namespace penstock::kernels::cuda
