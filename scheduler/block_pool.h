// The engine's KV pages: which are free. Pure bookkeeping; not thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace penstock::scheduler {

class BlockPool {
 public:
  explicit BlockPool(uint32_t num_pages);

  uint32_t num_pages() const { return static_cast<uint32_t>(is_free_.size()); }
  uint32_t num_free() const { return static_cast<uint32_t>(free_.size()); }
  bool is_free(uint32_t page) const { return is_free_[page]; }
  // Takes a page; num_free() must not be 0.
  uint32_t Allocate();
  // Gives pages back. Each must be taken: giving one back twice is a bug and ends the process.
  void Free(std::span<const uint32_t> pages);

 private:
  std::vector<uint32_t> free_;  // a stack: the page freed last is still warm in caches
  std::vector<bool> is_free_;
};

}  // namespace penstock::scheduler
