// Percentiles of very many positive values, to 1%: counts by the logarithm.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

namespace penstock::simulate {

class LogHistogram {
 public:
  // From 1e-6 to 1e6; what is beyond counts as that.
  void Add(double value) {
    const double at = (std::log10(std::max(value, kLeast)) - std::log10(kLeast)) * kBucketsADecade;
    ++counts_[std::min<size_t>(static_cast<size_t>(at), counts_.size() - 1)];
    ++count_;
  }

  // The value below which `percent` (0 to 100) of the values lie; 0 if there are none.
  double Percentile(double percent) const {
    const double below = percent / 100 * static_cast<double>(count_);
    uint64_t sum = 0;
    for (size_t i = 0; i < counts_.size(); ++i) {
      sum += counts_[i];
      if (counts_[i] > 0 && static_cast<double>(sum) >= below) {
        return kLeast * std::pow(10, (static_cast<double>(i) + 0.5) / kBucketsADecade);
      }
    }
    return 0;
  }
  uint64_t count() const { return count_; }

 private:
  static constexpr double kLeast = 1e-6;
  static constexpr int kBucketsADecade = 232;  // log(10) / log(1.01)

  std::array<uint64_t, 12 * kBucketsADecade> counts_ = {};
  uint64_t count_ = 0;
};

}  // namespace penstock::simulate
