// The random weights of --load-format=dummy, the same on every backend: element i (row-major) of a
// weight is a pure function of (seed, i), so that a device makes them in place.
#pragma once

#include <cstdint>

namespace penstock::kernels {

// Uniform in [-kRandomWeightBound, kRandomWeightBound), as vLLM's dummy loader: the values' spread
// moves a GPU's power and clock.
constexpr float kRandomWeightBound = 1e-3f;

// SplitMix64 (Steele, Lea and Flood, 2014) as a function of its counter. Before it is rounded to
// the weight's format. Can be called from CUDA kernels, being constexpr.
constexpr float RandomWeightValue(uint64_t seed, uint64_t index) {
  uint64_t x = seed * 0xD1342543DE82EF95u + (index + 1) * 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  x ^= x >> 31;
  return (static_cast<float>(x >> 40) * 0x1p-23f - 1.0f) * kRandomWeightBound;
}

}  // namespace penstock::kernels
