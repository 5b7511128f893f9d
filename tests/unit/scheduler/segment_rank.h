// A rank in the test's own process, to misbehave on purpose and to be seen by TSan: speaks the
// segment through the scheduler's mapping, yields ids that depend on seed and position alone.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/shm/ring.h"
#include "common/shm/segment.h"

namespace penstock::scheduler {

class SegmentRank {
 public:
  static constexpr uint32_t kVocabulary = 1000;

  // Takes the rank's presence. Reads and writes through `mapping`, which must outlive the rank;
  // null: a mapping of its own.
  SegmentRank(const shm::Segment* mapping, const std::string& engine_id, int index);

  static int32_t IdAt(uint64_t seed, uint32_t position) {
    return static_cast<int32_t>((seed * 7919 + position * 104729) % kVocabulary);
  }

  void SetState(shm::RankState state);
  void SetReady() { SetState(shm::RankState::kReady); }
  shm::RankArea& area() { return area_; }

  // Carries out the next record of the plan ring; false if there is none.
  bool Step();
  // Steps until Stop, which any thread may call.
  void Run();
  void Stop();

  uint64_t hash_noise = 0;  // added to ids_hash
  uint64_t step_noise = 0;  // added to step
  uint32_t slot_noise = 0;  // added to slots of result rows

 private:
  struct Slot {
    uint32_t generation = 0;
    std::vector<int32_t> ids;
  };
  void RunStep(const shm::PlanHeader& header, const std::byte* items);

  std::atomic<bool> stop_{false};
  std::unique_ptr<shm::Segment> presence_;
  const shm::Segment& segment_;
  int index_;
  shm::RankArea& area_;
  shm::RingReader plans_;
  shm::RingWriter results_;
  std::vector<Slot> slots_;
};

}  // namespace penstock::scheduler
