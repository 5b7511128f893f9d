// Spreading an op's items over threads.
#pragma once

#include <omp.h>

#include <cstdint>

#include "kernels/cpu/isa.h"

namespace penstock::kernels::cpu {

// What an op runs on.
struct Cpu {
  const Kernels* kernels = nullptr;
  int threads = 1;
};

// A fork and join costs some microseconds: below this many elements' work one thread is faster.
constexpr int64_t kMinParallelWork = 1 << 14;

// Calls f(i) for every i of [0, count), in any order, on the caller and its helpers. `work` is
// about how many elements are touched in all. Items must not depend on each other.
template <typename F>
void ForEach(const Cpu& cpu, int64_t count, int64_t work, const F& f) {
  if (cpu.threads == 1 || count == 1 || work < kMinParallelWork) {
    for (int64_t i = 0; i < count; ++i) f(i);
    return;
  }
#pragma omp parallel for schedule(static) num_threads(cpu.threads)
  for (int64_t i = 0; i < count; ++i) f(i);
}

// The same for items of unequal cost: threads take one at a time.
template <typename F>
void ForEachDynamic(const Cpu& cpu, int64_t count, int64_t work, const F& f) {
  if (cpu.threads == 1 || count == 1 || work < kMinParallelWork) {
    for (int64_t i = 0; i < count; ++i) f(i);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(cpu.threads)
  for (int64_t i = 0; i < count; ++i) f(i);
}

}  // namespace penstock::kernels::cpu
