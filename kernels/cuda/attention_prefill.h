// Prefill attention: rows of several tokens (prompt chunks), causal, over paged keys and values.
// Not for CUDA graphs: the host deals the work.
//
// The work is a list of items, (row, query head, tile of queries), dealt to the blocks of a
// persistent grid, the longest first to the least loaded block (LPT), so that blocks end together.
// Two kernels read the same lists: FlashInfer's FlashAttention-3 (sm_90a), and a portable one
// (sm_80 on).
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "kernels/ops.h"

namespace penstock::kernels::cuda {

struct PrefillConfig {
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_size = 0;  // 64 or 128
  int32_t page_size = 0;  // a power of two >= 8
  int32_t max_rows = 0;
  int32_t max_tokens = 0;
  int32_t num_blocks = 0;    // of the grid
  int32_t tile_queries = 0;  // queries a tile

  size_t max_items() const {
    return (static_cast<size_t>(max_tokens) / tile_queries + max_rows) * num_heads;
  }
};

// The lists, one array a field, as the FlashAttention-3 kernel wants them.
struct PrefillItems {
  int32_t* first_item = nullptr;  // [num_blocks + 1]: block b has items [first_item[b], [b + 1])
  int32_t* tile = nullptr;        // [items] of queries in the row
  int32_t* head = nullptr;        // query head
  int32_t* row = nullptr;
  int32_t* token_begin = nullptr;  // the row's first token
  int32_t* query_len = nullptr;    // the row's tokens
  int32_t* context_len = nullptr;  // the row's, this step's tokens included
  int32_t* first_page =
      nullptr;  // where the row's pages begin in the page table; set on the device
};
// The fields but first_page are the first PrefillHostBytes of PrefillItemsBytes: one copy takes
// them over.
size_t PrefillItemsBytes(const PrefillConfig& config);
PrefillItems LayOutPrefillItems(const PrefillConfig& config, size_t num_items, void* memory);

// Deals the work of rows [batch.num_single, batch.num_rows). Keeps its scratch, so that it stops
// allocating.
class PrefillPlanner {
 public:
  explicit PrefillPlanner(const PrefillConfig& config);
  // Returns the number of items, laid out by LayOutPrefillItems in `memory` (host).
  // INVALID_ARGUMENT if the step is larger than the configuration.
  absl::StatusOr<size_t> Plan(const BatchRows& batch, void* memory);

 private:
  struct Tile {
    int32_t row;
    int32_t tile;
    int32_t cost;
  };
  struct Load {
    int64_t cost;
    int32_t block;
  };
  PrefillConfig config_;
  std::vector<Tile> tiles_;
  std::vector<Load> heap_;
  std::vector<int32_t> block_of_item_;
};

// items->first_page from the slots of the rows' tokens.
absl::Status LocatePrefillPages(const PrefillItems& items, size_t num_items, const BatchRows& batch,
                                cudaStream_t stream);

// The portable kernel: 128 queries a tile.
constexpr int kPortableTileQueries = 128;
absl::StatusOr<int32_t> PreparePortablePrefill(const PrefillConfig& config);  // blocks an SM
absl::Status PortablePrefill(const PrefillConfig& config, const PrefillItems& items,
                             const AttentionParams& params, cudaStream_t stream);

// FlashAttention-3: on compute capability 9.0 alone. Queries a tile, or 0 where this build has no
// kernel for the head size.
int32_t FlashTileQueries(int32_t head_size);
absl::Status FlashPrefill(const PrefillConfig& config, const PrefillItems& items,
                          const AttentionParams& params, cudaStream_t stream);

}  // namespace penstock::kernels::cuda
