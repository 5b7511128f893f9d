// Figures over samples, as benchmarks of the field give them.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace penstock::bench {

struct Summary {
  size_t count = 0;  // 0: the rest says nothing
  double mean = 0, min = 0, p50 = 0, p95 = 0, p99 = 0, max = 0;
};

// The value below which `percent` (0 to 100) of the samples lie, interpolated linearly between
// neighbours (numpy's default, so that figures compare with those of `vllm bench`). `sorted`
// ascends and is not empty.
double Percentile(std::span<const double> sorted, double percent);

Summary Summarise(std::vector<double> samples);

// Percentile 50 of samples in any order; 0 if there are none.
double Median(std::vector<double> samples);

}  // namespace penstock::bench
