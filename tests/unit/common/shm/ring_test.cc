// The ring between real processes under load, and a writer that goes on after a dead one.
#include "common/shm/ring.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <vector>

#include "tests/unit/common/shm/ring_load.h"

namespace penstock::shm {
namespace {

class RingTest : public ::testing::Test {
 protected:
  void SetUp() override {
    void* memory = mmap(nullptr, sizeof(SharedRing), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(memory, MAP_FAILED);
    ring_ = new (memory) SharedRing;  // leaves the zeroes as they are
    std::printf("seed %u\n", seed_);
  }
  void TearDown() override { munmap(ring_, sizeof(SharedRing)); }

  // A process that exits with 0 if body() is true.
  static pid_t Fork(const std::function<bool()>& body) {
    const pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
      alarm(120);
      _exit(body() ? 0 : 1);
    }
    return pid;
  }
  static int Wait(pid_t pid) {
    int status = 0;
    CHECK(waitpid(pid, &status, 0) == pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  std::vector<pid_t> StartReaders(int count, uint64_t first, uint64_t last) {
    std::vector<pid_t> readers;
    readers.reserve(static_cast<size_t>(count));
    for (int i = 0; i < count; ++i) {
      readers.push_back(Fork([=, this] {
        return ReadRecords(ring_, i, seed_ + static_cast<uint32_t>(i), first, last);
      }));
    }
    return readers;
  }

  const uint32_t seed_ = static_cast<uint32_t>(MonotonicNs());
  SharedRing* ring_ = nullptr;
};

TEST_F(RingTest, ProcessesUnderLoad) {
  constexpr uint64_t kRecords = 100'000;
  const std::vector<pid_t> readers = StartReaders(kNumReaders, 0, kRecords);
  WriteRecords(ring_, seed_, 0, kRecords);
  for (pid_t reader : readers) EXPECT_EQ(Wait(reader), 0);
  for (auto& cursor : ring_->cursors) EXPECT_EQ(cursor.load(), ring_->tail.load());
}

TEST_F(RingTest, AWriterGoesOnAfterOneThatWasKilled) {
  // This process is the last reader, and so knows at each death what was published.
  constexpr uint64_t kRecords = 20'000;
  std::vector<pid_t> readers = StartReaders(kNumReaders - 1, 0, kRecords);
  std::mt19937 random(seed_);
  RingReader reader(ring_->span(), &ring_->tail, 0);
  uint64_t next = 0;
  auto read_to_tail = [&] {
    while (const std::byte* record = reader.Next()) {
      RingHeader header;
      std::memcpy(&header, record, 8);
      if (header.mark == kPadMark) continue;
      std::memcpy(&header, record, sizeof(header));
      ASSERT_EQ(header.number, next++);
    }
    ring_->cursors[kNumReaders - 1].store(reader.cursor(), std::memory_order_release);
    ring_->read.Notify();
  };
  while (next < kRecords) {
    const uint64_t dies_at = next + random() % 4000;
    const pid_t writer = Fork([=, this] {
      WriteRecords(ring_, seed_ + static_cast<uint32_t>(next), next, kRecords);
      return true;
    });
    while (next < std::min(dies_at, kRecords)) {
      const uint32_t seen = ring_->written.Current();
      ASSERT_NO_FATAL_FAILURE(read_to_tail());
      if (reader.Empty() && next < kRecords) ring_->written.Wait(seen, kNoDeadline);
    }
    kill(writer, SIGKILL);
    Wait(writer);
    ASSERT_NO_FATAL_FAILURE(read_to_tail());
  }
  for (pid_t other : readers) EXPECT_EQ(Wait(other), 0);
}

TEST_F(RingTest, NeverPassesTheSlowestReader) {
  const std::span<std::byte> bytes = ring_->span().first(4096);
  std::atomic<uint64_t> tail{0};
  RingWriter writer(bytes, &tail);
  for (int i = 0; i < 4; ++i) EXPECT_NE(writer.Reserve(1024, 0, WritePadMark), nullptr);
  EXPECT_EQ(writer.Reserve(8, 0, WritePadMark), nullptr);
  EXPECT_NE(writer.Reserve(8, 8, WritePadMark), nullptr);
  EXPECT_EQ(tail.load(), 0u);  // nothing is seen before it is published
  writer.Publish();
  EXPECT_EQ(tail.load(), 4104u);
}

TEST_F(RingTest, ARecordThatWouldCrossTheEndFollowsAPad) {
  const std::span<std::byte> bytes = ring_->span().first(4096);
  std::atomic<uint64_t> tail{0};
  RingWriter writer(bytes, &tail);
  RingReader reader(bytes, &tail, 0);
  auto write = [&](uint32_t size) {
    std::byte* record = writer.Reserve(size, reader.cursor(), WritePadMark);
    ASSERT_NE(record, nullptr);
    const uint32_t head[2] = {size, 0};
    std::memcpy(record, head, sizeof(head));
    writer.Publish();
    const std::byte* read = reader.Next();
    while (reinterpret_cast<const uint32_t*>(read)[1] == kPadMark) read = reader.Next();
    EXPECT_EQ(read, record);
  };
  for (int i = 0; i < 1000; ++i) write(8 * (1 + i * 37 % 127));
  EXPECT_TRUE(reader.Empty());
}

}  // namespace
}  // namespace penstock::shm
