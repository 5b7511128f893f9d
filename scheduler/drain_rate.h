// How fast the queue drains, for Retry-After: requests admitted for the first time, over the time
// in which some waited (an idle engine's rate says nothing), averaged with weights that fall by 1/e
// in kWindowS. Time is the caller's, in seconds. Not thread-safe.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace penstock::scheduler {

class DrainRate {
 public:
  static constexpr double kWindowS = 10;
  static constexpr uint32_t kMostS = 60;

  // Since the last call `num_admitted` were; `num_waiting` still are.
  void Observe(uint32_t num_admitted, size_t num_waiting, double now_s) {
    if (some_waited_) {
      const double keep = std::exp(-(now_s - last_s_) / kWindowS);
      admitted_ *= keep;
      seconds_ = seconds_ * keep + kWindowS * (1 - keep);
      admitted_ += num_admitted;
    }
    some_waited_ = num_waiting > 0;
    last_s_ = now_s;
  }

  // Whole seconds until so many will have been admitted: 1 to kMostS; 1 as long as nothing has been
  // seen.
  uint32_t SecondsFor(size_t num_requests) const {
    if (seconds_ < 0.1) return 1;
    const double seconds = num_requests * seconds_ / std::max(admitted_, 1e-3);
    return static_cast<uint32_t>(std::clamp(std::ceil(seconds), 1.0, double{kMostS}));
  }

 private:
  double admitted_ = 0, seconds_ = 0;  // both decay
  double last_s_ = 0;
  bool some_waited_ = false;
};

}  // namespace penstock::scheduler
