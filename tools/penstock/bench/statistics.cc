#include "tools/penstock/bench/statistics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace penstock::bench {

double Percentile(std::span<const double> sorted, double percent) {
  const double place = percent / 100 * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return std::lerp(sorted[below], sorted[above], place - static_cast<double>(below));
}

Summary Summarise(std::vector<double> samples) {
  if (samples.empty()) return {};
  std::sort(samples.begin(), samples.end());
  const double sum = std::accumulate(samples.begin(), samples.end(), 0.0);
  return {.count = samples.size(),
          .mean = sum / static_cast<double>(samples.size()),
          .min = samples.front(),
          .p50 = Percentile(samples, 50),
          .p95 = Percentile(samples, 95),
          .p99 = Percentile(samples, 99),
          .max = samples.back()};
}

double Median(std::vector<double> samples) { return Summarise(std::move(samples)).p50; }

}  // namespace penstock::bench
