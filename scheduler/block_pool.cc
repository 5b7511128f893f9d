#include "scheduler/block_pool.h"

#include "common/log.h"

namespace penstock::scheduler {

BlockPool::BlockPool(uint32_t num_pages) : is_free_(num_pages, true) {
  free_.reserve(num_pages);
  for (uint32_t page = num_pages; page > 0; --page) free_.push_back(page - 1);
}

uint32_t BlockPool::Allocate() {
  CHECK(!free_.empty());
  const uint32_t page = free_.back();
  free_.pop_back();
  is_free_[page] = false;
  return page;
}

void BlockPool::Free(std::span<const uint32_t> pages) {
  for (uint32_t page : pages) {
    CHECK(page < is_free_.size() && !is_free_[page]);
    is_free_[page] = true;
    free_.push_back(page);
  }
}

}  // namespace penstock::scheduler
