#include "scheduler/arena.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace penstock::scheduler {
namespace {

TEST(ArenaTest, TakesTheSmallestGapThatFitsAndJoinsNeighbours) {
  Arena arena(1024);
  EXPECT_EQ(arena.Allocate(256), 0u);
  EXPECT_EQ(arena.Allocate(1), 256u);  // 64 of it
  EXPECT_EQ(arena.Allocate(128), 320u);
  EXPECT_EQ(arena.Allocate(577), std::nullopt);
  arena.Free(0, 256);
  arena.Free(320, 128);  // joins the end
  EXPECT_EQ(arena.Allocate(200), 0u);
  arena.Free(0, 200);
  arena.Free(256, 1);
  EXPECT_EQ(arena.free_bytes(), 1024u);
  EXPECT_EQ(arena.Allocate(1024), 0u);
  arena.CheckInvariants();
}

TEST(ArenaTest, RandomTraces) {
  const auto seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  constexpr uint64_t kBytes = 1 << 16;
  Arena arena(kBytes);
  std::map<uint64_t, uint64_t> held;  // offset -> bytes asked for
  uint64_t held_bytes = 0;
  for (int step = 0; step < 200'000; ++step) {
    if (random() % 2 == 0) {
      const uint64_t bytes = random() % 3 == 0 ? random() % 8000 : random() % 500;
      if (const auto offset = arena.Allocate(bytes); offset && bytes > 0) {
        const auto next = held.lower_bound(*offset);
        ASSERT_TRUE(next == held.end() || *offset + bytes <= next->first);
        if (next != held.begin()) {
          const auto before = std::prev(next);
          ASSERT_LE(before->first + before->second, *offset);
        }
        ASSERT_LE(*offset + bytes, kBytes);
        held[*offset] = bytes;
        held_bytes += Arena::Rounded(bytes);
      }
    } else if (!held.empty()) {
      auto victim = held.lower_bound(random() % kBytes);
      if (victim == held.end()) victim = held.begin();
      arena.Free(victim->first, victim->second);
      held_bytes -= Arena::Rounded(victim->second);
      held.erase(victim);
    }
    ASSERT_EQ(arena.free_bytes(), kBytes - held_bytes);
    arena.CheckInvariants();
  }
  for (const auto& [offset, bytes] : held) arena.Free(offset, bytes);
  EXPECT_EQ(arena.Allocate(kBytes), 0u);
}

}  // namespace
}  // namespace penstock::scheduler
