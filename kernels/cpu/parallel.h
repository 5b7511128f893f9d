// Spreading an op's items over threads.
#pragma once

#include <cstdint>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/thread_pool.h"

namespace penstock::kernels::cpu {

// What an op runs on.
struct Cpu {
  const Kernels* kernels = nullptr;
  ThreadPool* pool = nullptr;
};

// Handing work to another thread costs some microseconds: less than this is faster on one. The unit
// is an element of RMSNorm, about 0.2 ns.
constexpr int64_t kMinParallelWork = 1 << 15;

// Calls f(thread, i) for every i of [0, count), in any order, on the caller and its helpers (see
// ThreadPool::Run). `work` is about how much it is in all. Items must not depend on each other.
template <typename F>
void ForEach(const Cpu& cpu, int64_t count, int64_t work, const F& f) {
  if (work >= kMinParallelWork) return cpu.pool->Run(count, f);
  for (int64_t i = 0; i < count; ++i) f(0, i);
}

}  // namespace penstock::kernels::cpu
