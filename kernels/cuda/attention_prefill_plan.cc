#include <algorithm>

#include "common/status.h"
#include "kernels/cuda/attention_prefill.h"

namespace penstock::kernels::cuda {
namespace {

constexpr size_t kPadded = 4;  // fields begin at multiples of 16 bytes

size_t Padded(size_t count) { return (count + kPadded - 1) / kPadded * kPadded; }

}  // namespace

size_t PrefillItemsBytes(const PrefillConfig& config) {
  return 4 * (Padded(config.num_blocks + 1) + 7 * Padded(config.max_items()));
}

PrefillItems LayOutPrefillItems(const PrefillConfig& config, size_t num_items, void* memory) {
  int32_t* at = static_cast<int32_t*>(memory);
  PrefillItems items;
  items.first_item = at;
  at += Padded(config.num_blocks + 1);
  for (int32_t** field : {&items.tile, &items.head, &items.row, &items.token_begin,
                          &items.query_len, &items.context_len, &items.first_page}) {
    *field = at;
    at += Padded(num_items);
  }
  return items;
}

PrefillPlanner::PrefillPlanner(const PrefillConfig& config) : config_(config) {
  tiles_.reserve(config.max_items() / config.num_heads);
  block_of_item_.reserve(config.max_items());
  heap_.reserve(config.num_blocks);
}

absl::StatusOr<size_t> PrefillPlanner::Plan(const BatchRows& batch, void* memory) {
  const int tile_queries = config_.tile_queries;
  tiles_.clear();
  for (int row = batch.num_single; row < batch.num_rows; ++row) {
    const int queries = batch.host_token_begin[row + 1] - batch.host_token_begin[row];
    const int context = batch.host_context_len[row];
    if (queries < 0 || context < queries) {
      return InvalidArgument("row {} has {} tokens in this step, {} in all", row, queries, context);
    }
    for (int tile = 0; tile * tile_queries < queries; ++tile) {
      // Tokens the tile looks at, and a fixed cost of about 64 more to load queries and store the
      // result.
      const int seen = std::min(context, (tile + 1) * tile_queries + context - queries);
      tiles_.push_back({row, tile, seen + 64});
    }
  }
  const size_t num_items = tiles_.size() * config_.num_heads;
  if (num_items > config_.max_items()) {
    return InvalidArgument(
        "a step of {} rows and {} tokens is larger than attention was set up for", batch.num_rows,
        batch.num_tokens);
  }
  std::stable_sort(tiles_.begin(), tiles_.end(),
                   [](const Tile& a, const Tile& b) { return a.cost > b.cost; });

  // Two passes over the same order: which block an item goes to, then its place in the block's
  // list.
  const PrefillItems items = LayOutPrefillItems(config_, num_items, memory);
  const auto lighter = [](const Load& a, const Load& b) {
    return a.cost != b.cost ? a.cost > b.cost : a.block > b.block;
  };
  heap_.clear();
  for (int block = 0; block < config_.num_blocks; ++block) heap_.push_back({0, block});
  std::fill_n(items.first_item, config_.num_blocks + 1, 0);
  block_of_item_.clear();
  for (const Tile& tile : tiles_) {
    for (int head = 0; head < config_.num_heads; ++head) {
      std::pop_heap(heap_.begin(), heap_.end(), lighter);
      heap_.back().cost += tile.cost;
      block_of_item_.push_back(heap_.back().block);
      ++items.first_item[heap_.back().block + 1];
      std::push_heap(heap_.begin(), heap_.end(), lighter);
    }
  }
  for (int block = 0; block < config_.num_blocks; ++block) {
    items.first_item[block + 1] += items.first_item[block];
  }
  for (Load& load : heap_) load.cost = items.first_item[load.block];
  std::sort(heap_.begin(), heap_.end(), [](const Load& a, const Load& b) {
    return a.block < b.block;
  });  // now cost: next place
  size_t index = 0;
  for (const Tile& tile : tiles_) {
    const int begin = batch.host_token_begin[tile.row];
    for (int head = 0; head < config_.num_heads; ++head) {
      const size_t to = heap_[block_of_item_[index++]].cost++;
      items.tile[to] = tile.tile;
      items.head[to] = head;
      items.row[to] = tile.row;
      items.token_begin[to] = begin;
      items.query_len[to] = batch.host_token_begin[tile.row + 1] - begin;
      items.context_len[to] = batch.host_context_len[tile.row];
    }
  }
  return num_items;
}

}  // namespace penstock::kernels::cuda
