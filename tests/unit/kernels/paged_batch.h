// A batch of rows for tests, with pages handed out in random order.
#pragma once

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/ops.h"

namespace penstock::kernels {

// A request's part of a step: tokens [first, first + count) of it.
struct TestRow {
  int32_t slot = 0;
  int32_t first = 0;
  int32_t count = 0;
};

// Hands out pages: slot s's i-th page.
class PageMap {
 public:
  PageMap(int num_slots, int pages_a_slot, std::mt19937* random) : stride_(pages_a_slot) {
    pages_.resize(num_slots * pages_a_slot);
    std::iota(pages_.begin(), pages_.end(), 0);
    std::shuffle(pages_.begin(), pages_.end(), *random);
  }
  const int32_t* OfSlot(int slot) const { return &pages_[slot * stride_]; }
  int stride() const { return stride_; }
  int size() const { return static_cast<int>(pages_.size()); }

 private:
  int stride_;
  std::vector<int32_t> pages_;
};

class PagedBatch {
 public:
  PagedBatch(const PageMap& pages, const std::vector<TestRow>& rows) {
    token_begin_.push_back(0);
    for (size_t r = 0; r < rows.size(); ++r) {
      for (int i = 0; i < rows[r].count; ++i) {
        slot_.push_back(rows[r].slot);
        position_.push_back(rows[r].first + i);
      }
      token_begin_.push_back(static_cast<int32_t>(slot_.size()));
      context_.push_back(rows[r].first + rows[r].count);
    }
    batch_ = {.num_rows = static_cast<int32_t>(rows.size()),
              .num_tokens = static_cast<int32_t>(slot_.size()),
              .token_begin = token_begin_.data(),
              .context_len = context_.data(),
              .page_table = pages.OfSlot(0),
              .page_table_stride = pages.stride(),
              .slot_of_token = slot_.data(),
              .position_of_token = position_.data()};
  }
  PagedBatch(const PagedBatch&) = delete;

  const BatchRows& rows() const { return batch_; }
  int slot(int t) const { return slot_[t]; }
  int position(int t) const { return position_[t]; }
  int num_tokens() const { return batch_.num_tokens; }

 private:
  std::vector<int32_t> token_begin_, context_, slot_, position_;
  BatchRows batch_;
};

}  // namespace penstock::kernels
