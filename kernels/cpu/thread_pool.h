// The threads that a CPU backend's ops are spread over.
//
// Made for loops of a few microseconds on cores that are shared with other processes, where
// OpenMP's static shares and join barrier cost whole time slices: here a loop never waits for a
// helper to be scheduled. The caller takes items as the helpers do; when none is left it waits only
// for items that a helper has begun. Helpers spin for some tens of microseconds, so that they are
// at hand for the next op of a step, then sleep on a futex.
#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace penstock::kernels::cpu {

class ThreadPool {
 public:
  // threads >= 1, the caller's own included.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Calls f(thread, item) for every item of [0, count) and returns when all are done. 0 <= thread <
  // threads(); one call at a time for a thread, the caller being 0. Each thread begins with a
  // contiguous share, in order, and then takes what is left of the others'. One thread calls Run at
  // a time, never from inside f.
  template <class F>
  void Run(int64_t count, const F& f) {
    if (threads_ == 1 || count <= 1) {
      for (int64_t i = 0; i < count; ++i) f(0, i);
      return;
    }
    RunErased(
        count,
        [](const void* g, int thread, int64_t item) { (*static_cast<const F*>(g))(thread, item); },
        &f);
  }

 private:
  using Function = void (*)(const void*, int, int64_t);
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  void RunErased(int64_t count, Function function, const void* argument);
  void TakeItems(int thread);
  void HelperMain(int thread);
  // Returns once state_ isn't `seen` (it may be by the time the caller looks): spins, then sleeps.
  void AwaitChange(uint32_t seen);
  // The kernel likes to wake a thread on the CPU of its waker, where a helper could only hold up
  // the caller.
  void LeaveCallersCpu() const;

  const int threads_;
  cpu_set_t allowed_;  // CPUs the process may use
  // Bits 0-7: helpers at work. Bit 8: a loop is open for helpers to join. Above: counts the loops.
  // The loop's fields below are written while it is closed and no helper is at work, and read by
  // helpers that have joined.
  std::atomic<uint32_t> state_{0};
  std::atomic<bool> stop_{false};
  std::atomic<int> caller_cpu_{-1};
  Function function_ = nullptr;
  const void* argument_ = nullptr;
  std::unique_ptr<Share[]> shares_;
  std::vector<std::thread> helpers_;
};

}  // namespace penstock::kernels::cpu
