#include "common/shm/event.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <new>

namespace penstock::shm {
namespace {

class EventTest : public ::testing::Test {
 protected:
  EventTest() {
    void* memory =
        mmap(nullptr, sizeof(Event), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    event_ = new (memory) Event;
  }
  ~EventTest() override { munmap(event_, sizeof(Event)); }
  Event* event_;
};

TEST_F(EventTest, ANotificationBeforeTheWaitIsNotMissed) {
  const uint32_t seen = event_->Current();
  event_->Notify();
  EXPECT_TRUE(event_->Wait(seen, kNoDeadline));
  EXPECT_TRUE(event_->Wait(seen, kNoDeadline, 1'000'000));
}

TEST_F(EventTest, TheDeadlineEndsTheWait) {
  const int64_t deadline = MonotonicNs() + 20'000'000;
  EXPECT_FALSE(event_->Wait(event_->Current(), deadline));
  EXPECT_GE(MonotonicNs(), deadline);
  EXPECT_FALSE(event_->Wait(event_->Current(), 0));  // long past
}

TEST_F(EventTest, WakesAnotherProcess) {
  const uint32_t seen = event_->Current();
  const pid_t waiter = fork();
  if (waiter == 0) _exit(event_->Wait(seen, MonotonicNs() + 60'000'000'000) ? 0 : 1);
  event_->Notify();
  int status = 0;
  ASSERT_EQ(waitpid(waiter, &status, 0), waiter);
  EXPECT_EQ(status, 0);
}

TEST_F(EventTest, AWaiterThatWasKilledHarmsNobody) {
  const pid_t waiter = fork();
  if (waiter == 0) {
    event_->Wait(event_->Current(), kNoDeadline);
    _exit(0);
  }
  kill(waiter, SIGKILL);
  waitpid(waiter, nullptr, 0);
  const uint32_t seen = event_->Current();
  event_->Notify();
  EXPECT_TRUE(event_->Wait(seen, kNoDeadline));
}

}  // namespace
}  // namespace penstock::shm
