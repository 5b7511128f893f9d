// Ordering a row's ids without sorting them. An id's key is its value's bits, made to order as the
// value does, above the complement of the id: so keys are distinct, a greater key is likelier, and
// of equals the lowest id comes first. Where the k-th key lies, or the one that completes a mass,
// is narrowed to a window of few keys by counting or summing what is above a pivot; those few are
// gathered and ordered.
#pragma once

#include <climits>
#include <cstdint>

#include "kernels/cuda/sampler_team.cuh"

namespace penstock::kernels::cuda {

constexpr uint32_t kAllIds = ~0u;  // as a pivot's lower half: all ids of that value lie below it

// Orders as floats do, 0 and -0 being equal.
__device__ __forceinline__ uint32_t OrderOf(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float ValueOf(uint32_t order) {
  return __uint_as_float(order & 0x80000000u ? order & 0x7fffffffu : ~order);
}

__device__ __forceinline__ uint64_t MakeKey(uint32_t order, uint32_t low) {
  return static_cast<uint64_t>(order) << 32 | low;
}
__device__ __forceinline__ uint64_t KeyOf(float value, int id) {
  return MakeKey(OrderOf(value), ~static_cast<uint32_t>(id));
}
__device__ __forceinline__ float ValueOfKey(uint64_t key) {
  return ValueOf(static_cast<uint32_t>(key >> 32));
}
__device__ __forceinline__ int IdOfKey(uint64_t key) {
  return static_cast<int>(~static_cast<uint32_t>(key));
}

// The key sought is in (low, high].
struct KeyWindow {
  uint64_t low;
  uint64_t high;
  int count_low;   // keys above low
  int count_high;  // keys above high
  double mass_high;
};

struct Above {  // of the keys above a pivot
  double mass;
  int32_t count;
};

// All threads.
template <bool kWithMass, typename Team>
__device__ Above SumAbove(Team& team, uint64_t pivot) {
  const float value = ValueOfKey(pivot);
  const auto low = static_cast<uint32_t>(pivot);
  float mass = 0;
  int count = 0;
  for (int i = team.strip_begin; i < team.strip_end; ++i) {
    const float x = team.values[i];
    const uint32_t id_bits = ~static_cast<uint32_t>(team.begin + i);
    if (x > value || (x == value && id_bits > low)) {
      ++count;
      if (kWithMass) mass += x;
    }
  }
  if constexpr (kWithMass) {
    return team.Reduce(Above{mass, count}, [](const Above& a, const Above& b) {
      return Above{a.mass + b.mass, a.count + b.count};
    });
  } else {
    return {0, team.Reduce(count, [](int a, int b) { return a + b; })};
  }
}

// All threads: narrows the window, which holds the first key (from the greatest) at which count or
// mass reaches `bound`, until no more than kMaxCandidates keys are in it; with `to_top`, until no
// more are above its low end. guess(low, high) proposes a pivot's order, from those of the ends.
template <bool kByMass, typename Team, typename Guess>
__device__ KeyWindow Narrow(Team& team, KeyWindow window, double bound, bool to_top, Guess guess) {
  constexpr int kGuesses = 14;  // then halving ends it, whatever the values
  for (int pass = 0; window.count_low - (to_top ? 0 : window.count_high) > kMaxCandidates; ++pass) {
    const auto low = static_cast<uint32_t>(window.low >> 32);
    const auto high = static_cast<uint32_t>(window.high >> 32);
    uint64_t pivot = window.low + (window.high - window.low) / 2;
    if (high - low > 1) {
      uint32_t order = pass < kGuesses ? guess(low, high) : low;
      if (order <= low || order >= high) order = low + (high - low) / 2;
      pivot = MakeKey(order, kAllIds);
    }
    if (pivot <= window.low || pivot >= window.high) break;  // one key is left
    const Above above = SumAbove<kByMass>(team, pivot);
    if ((kByMass ? above.mass : above.count) >= bound) {
      window.low = pivot;
      window.count_low = above.count;
    } else {
      window.high = pivot;
      window.count_high = above.count;
      window.mass_high = above.mass;
    }
  }
  return window;
}

// All threads: the window around the k-th greatest logit, `most` being the first.
template <typename Team>
__device__ KeyWindow NarrowToKth(Team& team, int vocab_size, int k, float most, bool to_top) {
  constexpr uint32_t kBelowAll = 0x007ffffeu;  // just less than the order of -infinity
  const KeyWindow all = {MakeKey(kBelowAll, kAllIds), MakeKey(OrderOf(most), kAllIds), vocab_size,
                         0, 0};
  float gap = 2;
  const auto guess = [&gap](uint32_t low, uint32_t high) {
    if (low != kBelowAll) return OrderOf(0.5f * ValueOf(low) + 0.5f * ValueOf(high));
    const float below = ValueOf(high) - gap;
    gap *= 2;
    return OrderOf(below);
  };
  return Narrow<false>(team, all, k, to_top, guess);
}

// All threads: block 0's scratch.sorted gets the keys in (low, high], the greatest first; returns
// how many to that block, 0 to others. A barrier of the team must come before the next call.
template <typename Team>
__device__ int CollectSorted(Team& team, uint64_t low, uint64_t high) {
  SamplerScratch& scratch = team.scratch;
  int32_t* num = Team::Blocks::At(&scratch.num_candidates, 0);
  uint64_t* list = Team::Blocks::At(scratch.candidates, 0);
  for (int i = team.strip_begin; i < team.strip_end; ++i) {
    const uint64_t key = KeyOf(team.values[i], team.begin + i);
    if (key <= low || key > high) continue;
    const int at = atomicAdd(num, 1);
    if (at < kMaxCandidates) list[at] = key;  // always, unless the row changes under us
  }
  team.Barrier();
  if (team.rank != 0) return 0;
  const int n = min(scratch.num_candidates, kMaxCandidates);
  if (team.thread < n) {
    const uint64_t mine = scratch.candidates[team.thread];
    int place = 0;
    for (int j = 0; j < n; ++j) place += scratch.candidates[j] > mine;
    scratch.sorted[place] = mine;
  }
  __syncthreads();
  if (team.thread == 0) scratch.num_candidates = 0;
  return n;
}

}  // namespace penstock::kernels::cuda
