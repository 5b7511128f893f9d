#include "common/shm/event.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <climits>

namespace penstock::shm {

int64_t MonotonicNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * int64_t{1'000'000'000} + now.tv_nsec;
}

void Event::Notify() {
  sequence_.fetch_add(1, std::memory_order_seq_cst);
  if (waiters_.load(std::memory_order_seq_cst) != 0) {
    syscall(SYS_futex, &sequence_, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
  }
}

bool Event::Wait(uint32_t seen, int64_t deadline_ns, int64_t spin_ns) {
  if (spin_ns > 0) {
    const int64_t spin_until = MonotonicNs() + spin_ns;
    do {
      for (int i = 0; i < 64; ++i) {
        if (Current() != seen) return true;
        __builtin_ia32_pause();
      }
    } while (MonotonicNs() < spin_until);
  }
  waiters_.fetch_add(1, std::memory_order_seq_cst);
  bool notified = true;
  while (Current() == seen) {
    timespec deadline{deadline_ns / 1'000'000'000, deadline_ns % 1'000'000'000};
    // FUTEX_WAIT_BITSET takes an absolute CLOCK_MONOTONIC deadline.
    long result =
        syscall(SYS_futex, &sequence_, FUTEX_WAIT_BITSET, seen,
                deadline_ns == kNoDeadline ? nullptr : &deadline, nullptr, FUTEX_BITSET_MATCH_ANY);
    if (result == -1 && errno == ETIMEDOUT) {
      notified = Current() != seen;
      break;
    }
  }
  waiters_.fetch_sub(1, std::memory_order_seq_cst);
  return notified;
}

}  // namespace penstock::shm
