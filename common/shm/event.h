// A process-shared wake-up on a futex: lives in shared memory, holds no lock, survives the death of
// any party.
//
//   waiter:    uint32_t seen = event.Current();  if (!condition()) event.Wait(seen, deadline_ns);
//   (in a loop) notifier:  make the condition true;  event.Notify();
//
// A Notify between Current() and Wait() makes Wait return at once, so nothing is missed.
// (std::atomic::wait is process-private in GCC 12, hence our own.)
#pragma once

#include <atomic>
#include <cstdint>

namespace penstock::shm {

constexpr int64_t kNoDeadline = INT64_MAX;

// CLOCK_MONOTONIC in nanoseconds: the clock of all deadlines and time stamps in the segment.
int64_t MonotonicNs();

class Event {
 public:
  uint32_t Current() const { return sequence_.load(std::memory_order_seq_cst); }
  // Wakes all waiters. A system call only if there may be one. Any thread or process.
  void Notify();
  // Returns true once the event was notified after `seen` was read, false when deadline_ns
  // (MonotonicNs) has passed. Spins for up to spin_ns first, for waits that are known to be short.
  bool Wait(uint32_t seen, int64_t deadline_ns, int64_t spin_ns = 0);

 private:
  std::atomic<uint32_t> sequence_;
  std::atomic<uint32_t>
      waiters_;  // a waiter that dies leaves it raised: that costs a system call a Notify, no more
};

}  // namespace penstock::shm
