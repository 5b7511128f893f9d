#include "scheduler/length_estimate.h"

#include <algorithm>

namespace penstock::scheduler {

WindowEstimate::WindowEstimate() {
  recent_.reserve(kWindow);
  sorted_.reserve(kWindow);
}

void WindowEstimate::Observe(uint32_t length) {
  if (recent_.size() < kWindow) {
    recent_.push_back(length);
  } else {
    sorted_.erase(std::lower_bound(sorted_.begin(), sorted_.end(), recent_[oldest_]));
    recent_[oldest_] = length;
    oldest_ = (oldest_ + 1) % kWindow;
  }
  sorted_.insert(std::upper_bound(sorted_.begin(), sorted_.end(), length), length);
}

uint32_t WindowEstimate::Expect(uint32_t generated, uint32_t max_tokens, uint32_t rank) const {
  if (generated >= max_tokens) return max_tokens;
  const auto longer = std::upper_bound(sorted_.begin(), sorted_.end(), generated);
  const size_t num_longer = sorted_.end() - longer;
  const size_t num_unseen = (kWindow - sorted_.size()) / kPriorShare;
  const size_t pick = (uint64_t{rank} * (num_longer + num_unseen)) >> 32;
  if (pick < num_longer) return std::min(max_tokens, longer[pick]);
  const uint64_t unseen = num_unseen > 0 ? kUnseen : 0;
  return static_cast<uint32_t>(
      std::min<uint64_t>(max_tokens, std::max(unseen, 2 * uint64_t{generated})));
}

}  // namespace penstock::scheduler
