#include "kernels/cpu/thread_pool.h"

#include <sched.h>

#include <chrono>

#include "common/log.h"

namespace penstock::kernels::cpu {
namespace {

constexpr uint32_t kWorkers = 0xff;
constexpr uint32_t kOpen = 0x100;
constexpr uint32_t kOneLoop = 0x200;
constexpr auto kSpinTime = std::chrono::microseconds(50);

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads)
    : threads_(threads), shares_(std::make_unique<Share[]>(threads)) {
  CHECK(threads >= 1 && threads <= static_cast<int>(kWorkers));
  CPU_ZERO(&allowed_);
  sched_getaffinity(0, sizeof(allowed_), &allowed_);
  for (int i = 1; i < threads; ++i) helpers_.emplace_back([this, i] { HelperMain(i); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  state_.fetch_add(kOneLoop, std::memory_order_release);
  state_.notify_all();
  for (std::thread& helper : helpers_) helper.join();
}

void ThreadPool::RunErased(int64_t count, Function function, const void* argument) {
  caller_cpu_.store(sched_getcpu(), std::memory_order_relaxed);
  function_ = function;
  argument_ = argument;
  for (int i = 0; i < threads_; ++i) {
    shares_[i].next.store(count * i / threads_, std::memory_order_relaxed);
    shares_[i].end = count * (i + 1) / threads_;
  }
  state_.fetch_add(kOneLoop | kOpen, std::memory_order_release);
  state_.notify_all();  // a look at a counter if none sleeps
  TakeItems(0);
  uint32_t state = state_.fetch_and(~kOpen, std::memory_order_acquire) & ~kOpen;
  while ((state & kWorkers) != 0) {
    AwaitChange(state);
    state = state_.load(std::memory_order_acquire);
  }
}

void ThreadPool::TakeItems(int thread) {
  for (int i = 0; i < threads_; ++i) {
    Share& share = shares_[(thread + i) % threads_];
    while (share.next.load(std::memory_order_relaxed) < share.end) {
      const int64_t item = share.next.fetch_add(1, std::memory_order_relaxed);
      if (item >= share.end) break;
      function_(argument_, thread, item);
    }
  }
}

void ThreadPool::HelperMain(int thread) {
  uint32_t done = 0;  // the loop last worked on: not to be joined again
  uint32_t state = state_.load(std::memory_order_acquire);
  while (!stop_.load(std::memory_order_relaxed)) {
    const uint32_t loop = state & ~(kWorkers | kOpen);
    LeaveCallersCpu();
    if ((state & kOpen) == 0 || loop == done) {
      AwaitChange(state);
      state = state_.load(std::memory_order_acquire);
    } else if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acquire)) {
      TakeItems(thread);
      done = loop;
      state = state_.fetch_sub(1, std::memory_order_acq_rel) - 1;
      if ((state & (kOpen | kWorkers)) == 0)
        state_.notify_all();  // the caller may wait for the last
    }
  }
}

void ThreadPool::LeaveCallersCpu() const {
  const int cpu = caller_cpu_.load(std::memory_order_relaxed);
  if (cpu < 0 || cpu != sched_getcpu()) return;
  cpu_set_t others = allowed_;
  CPU_CLR(cpu, &others);
  if (CPU_COUNT(&others) > 0)
    sched_setaffinity(0, sizeof(others), &others);  // a wish: failure does no harm
}

void ThreadPool::AwaitChange(uint32_t seen) {
  const auto give_up = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < 32; ++i) {
      if (state_.load(std::memory_order_relaxed) != seen) return;
      Pause();
    }
  } while (std::chrono::steady_clock::now() < give_up);
  state_.wait(seen, std::memory_order_relaxed);
}

}  // namespace penstock::kernels::cpu
