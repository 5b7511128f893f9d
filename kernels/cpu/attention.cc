#include "kernels/cpu/attention.h"

#include <algorithm>

#include "common/status.h"
#include "kernels/cpu/rope.h"

namespace penstock::kernels::cpu {
namespace {

// Cuts the rows in ranges of at most `most` tokens; returns how many.
int CutRows(const BatchRows& batch, int most, std::span<TokenRange> ranges) {
  int count = 0;
  for (int32_t row = 0; row < batch.num_rows; ++row) {
    const int32_t end = batch.token_begin[row + 1];
    for (int32_t t = batch.token_begin[row]; t < end; t += most) {
      ranges[count++] = {t, std::min(t + most, end)};
    }
  }
  return count;
}

// The tile of `range`'s tokens and query heads [head, head + num_heads), all of KV head `kv_head`.
AttentionTile MakeTile(const AttentionParams& p, const TokenRange& range, int kv_head, int head,
                       int num_heads) {
  const int64_t head_size = p.head_size;
  const int64_t head_page = p.kv.page_size * head_size;
  const int64_t offset = kv_head * head_page * DTypeSize(p.kv.dtype);
  AttentionTile tile;
  tile.head_size = p.head_size;
  tile.scale = p.scale;
  tile.k = static_cast<const std::byte*>(p.kv.k) + offset;
  tile.v = static_cast<const std::byte*>(p.kv.v) + offset;
  tile.kv_type = KvTypeOf(p.kv.dtype);
  tile.pages =
      p.batch->page_table + p.batch->slot_of_token[range.begin] * p.batch->page_table_stride;
  tile.page_stride = head_page * p.num_kv_heads;
  tile.page_size = p.kv.page_size;
  for (int32_t t = range.begin; t < range.end; ++t) {
    for (int h = head; h < head + num_heads; ++h) {
      const int m = tile.num_queries++;
      tile.q[m] = static_cast<const float*>(p.q) + t * p.q_stride + h * head_size;
      tile.out[m] = static_cast<float*>(p.out) + (t * p.num_heads + h) * head_size;
      tile.num_visible[m] = p.batch->position_of_token[t] + 1;
    }
  }
  return tile;
}

}  // namespace

absl::Status Attention(const Cpu& cpu, const AttentionParams& p, std::span<TokenRange> scratch) {
  RETURN_IF_ERROR(CheckHeadSize(p.head_size));
  const int group = p.num_heads / p.num_kv_heads;
  const int heads_a_tile = std::min(group, kMaxTileQueries);
  const int parts = (group + heads_a_tile - 1) / heads_a_tile;
  const int num_ranges = CutRows(*p.batch, kMaxTileQueries / heads_a_tile, scratch);
  const int64_t tiles_a_range = int64_t{p.num_kv_heads} * parts;
  int64_t positions = 0;
  for (int r = 0; r < p.batch->num_rows; ++r) {
    const int64_t tokens = p.batch->token_begin[r + 1] - p.batch->token_begin[r];
    positions += tokens * p.batch->context_len[r];
  }
  const int64_t work = positions * p.num_heads * p.head_size / 4;
  ForEach(cpu, num_ranges * tiles_a_range, work, [&](int, int64_t i) {
    // The last ranges of a prompt see most: they come first, so that no thread is left with one.
    const TokenRange& range = scratch[num_ranges - 1 - i / tiles_a_range];
    const int kv_head = static_cast<int>(i % tiles_a_range) / parts;
    const int first = static_cast<int>(i % tiles_a_range) % parts * heads_a_tile;
    const int count = std::min(heads_a_tile, group - first);
    cpu.kernels->attend(MakeTile(p, range, kv_head, kv_head * group + first, count));
  });
  return absl::OkStatus();
}

}  // namespace penstock::kernels::cpu
