// Space in the segment's arena: best fit, neighbours that are free are joined at once. Pure
// bookkeeping over offsets; not thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>

#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"

namespace penstock::scheduler {

class Arena {
 public:
  static constexpr uint64_t kAlignment = 64;  // of offsets and sizes: a cache line

  explicit Arena(uint64_t bytes);

  uint64_t total_bytes() const { return total_bytes_; }
  uint64_t free_bytes() const { return free_bytes_; }
  // What an allocation of `bytes` takes.
  static uint64_t Rounded(uint64_t bytes) { return (bytes + kAlignment - 1) & ~(kAlignment - 1); }

  // Offset of Rounded(bytes) free bytes; none if no gap is large enough.
  std::optional<uint64_t> Allocate(uint64_t bytes);
  // `bytes` as it was asked for.
  void Free(uint64_t offset, uint64_t bytes);
  // Gaps are disjoint, not adjacent, and add up to free_bytes(). Ends the process if not.
  void CheckInvariants() const;

 private:
  void AddGap(uint64_t offset, uint64_t bytes);
  void RemoveGap(uint64_t offset, uint64_t bytes);

  uint64_t total_bytes_;
  uint64_t free_bytes_ = 0;
  absl::btree_map<uint64_t, uint64_t> gaps_;                  // offset -> bytes
  absl::btree_set<std::pair<uint64_t, uint64_t>> gap_sizes_;  // (bytes, offset)
};

}  // namespace penstock::scheduler
