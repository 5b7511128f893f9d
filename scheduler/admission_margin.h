// How much of the KV memory admission leaves to its own errors. The look ahead is right on average,
// so without a margin it would be too low half the time. How far it strays depends on the traffic
// and on how many requests run; so the margin is steered by what comes of it: each preemption
// widens it, each request that ends narrows it, in such a proportion that it stands still when
// kTarget of the requests are preempted. (Stochastic approximation of a quantile: Robbins and
// Monro, 1951; in the logarithm.)
#pragma once

#include <algorithm>
#include <cstdint>

namespace penstock::scheduler {

class AdmissionMargin {
 public:
  static constexpr double kTarget = 0.005;  // preemptions a request
  static constexpr double kGain = 0.03;     // a preemption widens it by so much of itself
  static constexpr double kFirst = 0.03, kLeast = 0.002, kMost = 0.5;  // shares of all pages

  void Preempted() { share_ = std::min(share_ * (1 + kGain), kMost); }
  void Ended() { share_ = std::max(share_ * (1 - kGain * kTarget), kLeast); }

  uint32_t Pages(uint32_t num_pages) const { return static_cast<uint32_t>(share_ * num_pages); }

 private:
  double share_ = kFirst;
};

}  // namespace penstock::scheduler
