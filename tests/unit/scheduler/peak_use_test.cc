#include "scheduler/peak_use.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace penstock::scheduler {
namespace {

using Entry = PeakUse::Entry;

PeakUse Of(const std::vector<Entry>& entries) {
  PeakUse peak;
  peak.Clear();
  for (Entry entry : entries) peak.Add(entry);
  peak.Sort();
  return peak;
}

// Step by step, as the formula's definition has it: everybody grows by a token, then those whose
// time has come go.
uint64_t Simulate(std::vector<Entry> entries) {
  uint64_t peak = 0;
  for (;;) {
    uint64_t use = 0;
    for (const Entry& entry : entries) use += entry.held;
    peak = std::max(peak, use);
    std::erase_if(entries, [](const Entry& entry) { return entry.remaining == 0; });
    if (entries.empty()) return peak;
    for (Entry& entry : entries) {
      --entry.remaining;
      ++entry.held;
    }
  }
}

TEST(PeakUseTest, NobodyNeedsNothing) {
  EXPECT_EQ(Of({}).Peak(), 0u);
  EXPECT_EQ(Of({}).PeakWith({5, 3}), 8u);
}

// Three run: A holds 5 and has 4 to go, B 6 and 2, C 3 and 1.
//   C ends after 1 step:  5 + 6 + 3 + 3 * 1 = 17
//   B after 2:            5 + 6     + 2 * 2 = 15
//   A after 4:            5         + 1 * 4 =  9
TEST(PeakUseTest, WorkedByHand) {
  PeakUse peak = Of({{2, 6}, {4, 5}, {1, 3}});
  EXPECT_EQ(peak.Peak(), 17u);
  // D holds 2 and has 3 to go: at C's end 5 + 2 + 6 + 3 + 4 * 1 = 20, at B's 5 + 2 + 6 + 3 * 2 =
  // 19, at its own 5 + 2 + 2 * 3 = 13.
  EXPECT_EQ(peak.PeakWith({3, 2}), 20u);
  // One step later C is gone, A holds 6 with 3 to go, B 7 with 1: now D costs
  // 6 + 2 + 7 + 3 * 1 = 18 at B's end. Waiting for a step saved 2.
  EXPECT_EQ(Of({{3, 6}, {1, 7}}).PeakWith({3, 2}), 18u);
  // Whoever stays long pays at the end: E holds 1 and has 20 to go.
  EXPECT_EQ(peak.PeakWith({20, 1}), 21u);  // at its own end: 1 + 20
}

TEST(PeakUseTest, RandomisedAgainstStepByStep) {
  const auto seed = std::random_device()();
  std::printf("seed %u\n", seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 2000; ++round) {
    const uint32_t range = 1 + random() % 60;  // short ones make many ties
    auto below = [&](uint32_t n) { return static_cast<uint32_t>(random() % n); };
    auto draw = [&] { return Entry{below(range), 1 + below(50)}; };
    std::vector<Entry> entries(random() % 12);
    for (Entry& entry : entries) entry = draw();
    PeakUse peak = Of(entries);
    ASSERT_EQ(peak.Peak(), Simulate(entries));
    for (int more = 0; more < 5; ++more) {
      const Entry entry = draw();
      const uint64_t before = peak.Peak();
      const uint64_t with = peak.PeakWith(entry);
      entries.push_back(entry);
      ASSERT_EQ(with, Simulate(entries));
      ASSERT_GE(with, before + (with > before ? 1 : 0));
      ASSERT_GE(with, uint64_t{entry.held} + entry.remaining);
      // Never less for one who holds more or stays longer.
      ASSERT_LE(with, peak.PeakWith({entry.remaining, entry.held + 1}));
      ASSERT_LE(with, peak.PeakWith({entry.remaining + 1, entry.held}));
      peak.Insert(entry);
      ASSERT_EQ(peak.Peak(), with);
    }
  }
}

}  // namespace
}  // namespace penstock::scheduler
