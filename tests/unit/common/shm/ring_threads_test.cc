// The threaded twin of ring_test's load, for TSan, which cannot see across processes.
#include <gtest/gtest.h>

#include <memory>
#include <thread>
#include <vector>

#include "tests/unit/common/shm/ring_load.h"

namespace penstock::shm {
namespace {

TEST(RingThreadsTest, UnderLoad) {
  constexpr uint64_t kRecords = 20'000;
  const auto seed = static_cast<uint32_t>(MonotonicNs());
  std::printf("seed %u\n", seed);
  const auto ring = std::make_unique<SharedRing>();
  std::vector<std::thread> readers;
  readers.reserve(kNumReaders);
  std::atomic<int> num_right{0};
  for (int i = 0; i < kNumReaders; ++i) {
    readers.emplace_back([&, i] {
      num_right += ReadRecords(ring.get(), i, seed + static_cast<uint32_t>(i), 0, kRecords);
    });
  }
  WriteRecords(ring.get(), seed, 0, kRecords);
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(num_right.load(), kNumReaders);
}

TEST(EventThreadsTest, NothingIsMissed) {
  // Two threads in turn: each round needs the other's notification, so one missed hangs the test.
  Event events[2] = {};
  std::atomic<int> turn{0};
  constexpr int kRounds = 20'000;
  auto play = [&](int me) {
    for (int round = 0; round < kRounds; ++round) {
      while (true) {
        const uint32_t seen = events[me].Current();
        if (turn.load() == me) break;
        events[me].Wait(seen, kNoDeadline, round % 2 == 0 ? 1000 : 0);
      }
      turn.store(1 - me);
      events[1 - me].Notify();
    }
  };
  std::thread other([&] { play(1); });
  play(0);
  other.join();
  EXPECT_EQ(turn.load(), 0);
}

}  // namespace
}  // namespace penstock::shm
