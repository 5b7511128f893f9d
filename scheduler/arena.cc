#include "scheduler/arena.h"

#include <iterator>

#include "common/log.h"

namespace penstock::scheduler {

Arena::Arena(uint64_t bytes) : total_bytes_(bytes & ~(kAlignment - 1)) {
  if (total_bytes_ > 0) AddGap(0, total_bytes_);
}

void Arena::AddGap(uint64_t offset, uint64_t bytes) {
  gaps_.emplace(offset, bytes);
  gap_sizes_.emplace(bytes, offset);
  free_bytes_ += bytes;
}

void Arena::RemoveGap(uint64_t offset, uint64_t bytes) {
  gaps_.erase(offset);
  gap_sizes_.erase({bytes, offset});
  free_bytes_ -= bytes;
}

std::optional<uint64_t> Arena::Allocate(uint64_t bytes) {
  bytes = Rounded(bytes);
  const auto best = gap_sizes_.lower_bound({bytes, 0});
  if (best == gap_sizes_.end()) return std::nullopt;
  const auto [gap_bytes, offset] = *best;
  RemoveGap(offset, gap_bytes);
  if (gap_bytes > bytes) AddGap(offset + bytes, gap_bytes - bytes);
  return offset;
}

void Arena::Free(uint64_t offset, uint64_t bytes) {
  bytes = Rounded(bytes);
  if (bytes == 0) return;
  CHECK(offset + bytes <= total_bytes_);
  const auto next = gaps_.lower_bound(offset);
  uint64_t end = offset + bytes;
  uint64_t begin = offset;
  if (next != gaps_.begin()) {
    const auto [before, before_bytes] = *std::prev(next);
    CHECK(before + before_bytes <= offset);
    if (before + before_bytes == offset) begin = before;
  }
  if (next != gaps_.end()) {
    CHECK(next->first >= end);
    if (next->first == end) {
      const uint64_t next_bytes = next->second;
      RemoveGap(end, next_bytes);
      end += next_bytes;
    }
  }
  if (begin != offset) RemoveGap(begin, offset - begin);
  AddGap(begin, end - begin);
}

void Arena::CheckInvariants() const {
  uint64_t sum = 0;
  uint64_t last_end = UINT64_MAX;
  for (const auto& [offset, bytes] : gaps_) {
    CHECK(bytes > 0 && offset != last_end && offset + bytes <= total_bytes_);
    CHECK(last_end == UINT64_MAX || offset > last_end);
    CHECK(gap_sizes_.contains({bytes, offset}));
    last_end = offset + bytes;
    sum += bytes;
  }
  CHECK(sum == free_bytes_ && gaps_.size() == gap_sizes_.size());
}

}  // namespace penstock::scheduler
