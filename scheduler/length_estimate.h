// How long outputs will be, for admission's look ahead. Deterministic: what it says depends on what
// it has observed and on the arguments alone. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace penstock::scheduler {

class LengthEstimate {
 public:
  virtual ~LengthEstimate() = default;

  // A request came to its end with `length` output ids. (Not for those that were cancelled.)
  virtual void Observe(uint32_t length) = 0;

  // Output ids at which a request ends that has `generated` and may have `max_tokens`: more than
  // `generated`, at most `max_tokens`. `rank` stands for the request's luck: it is uniform over all
  // 2^32 values and the request keeps it for life, so that the sum over many requests is true
  // though no single one is, and asking again gives no second chance.
  virtual uint32_t Expect(uint32_t generated, uint32_t max_tokens, uint32_t rank) const = 0;
};

// Ranks of requests 1, 2, 3, ...: a golden-ratio sequence. Neighbours in the queue spread evenly
// over the distribution, so that the mean of a batch strays less than that of random draws.
constexpr uint32_t RankOf(uint64_t order) { return static_cast<uint32_t>(order * 2654435769u); }

// The lengths of the last kWindow requests, taken as the distribution of those that run: the
// `rank`-th quantile of what is longer than `generated` ("Past-Future Scheduler for LLM Serving
// under SLA Guarantees", Gong et al., 2025, which draws at random instead).
//
// What it has not seen yet it assumes to be long, kUnseen: a window that lacks k lengths counts as
// though it had k / kPriorShare of that, since the first to end are the short ones. Of a request
// that outlives that, or all of a full window, twice what it has is expected.
//
// Observe: O(kWindow) moves of 4 bytes; Expect: O(log kWindow).
class WindowEstimate : public LengthEstimate {
 public:
  static constexpr size_t kWindow = 2048;
  static constexpr size_t kPriorShare = 8;
  static constexpr uint32_t kUnseen = 4096;

  WindowEstimate();
  void Observe(uint32_t length) override;
  uint32_t Expect(uint32_t generated, uint32_t max_tokens, uint32_t rank) const override;

 private:
  std::vector<uint32_t> recent_;  // a ring: oldest_ is replaced next once it is full
  size_t oldest_ = 0;
  std::vector<uint32_t> sorted_;  // the same lengths, ascending
};

}  // namespace penstock::scheduler
