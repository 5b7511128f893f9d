// A rank as Batch sees it: carries plans out as they are published, and ends the process when one
// says what a real rank could not do, or would get wrong ids from. Pages have contents here: what
// stands at a position tells all ids up to it and the request's salt.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "scheduler/plan_record.h"
#include "scheduler/request.h"

namespace penstock::scheduler {

// The id at a position is a function of seed and position, as on a real device.
int32_t IdAt(uint64_t seed, uint32_t position);
// Of the request with that seed.
std::string SaltOf(uint64_t seed);

struct Result {
  uint32_t slot, generation, position;
  int32_t id;
};

class ShadowRank {
 public:
  // Requests have the stop ids 7 and 8.
  ShadowRank(std::span<shm::RequestSlot> slots, std::span<std::byte> arena,
             const ModelFacts& model);

  void Reset();
  std::vector<Result> Run(uint64_t step, const PlanRecord& record, uint32_t max_tokens);
  // The scheduler has been told so: what was filled up to it may be shared, pages that were named
  // up to it may be others' own.
  void CompleteStep(uint64_t step) { completed_step_ = step; }

  uint64_t num_computed = 0;  // ids
  uint64_t num_copies = 0;    // pages

 private:
  struct Bound {
    uint32_t generation = 0;
    uint32_t computed = 0;
    std::vector<int32_t> ids;
    std::vector<uint32_t> pages;
    size_t num_named = 0;  // of the pages, by its rows so far
  };
  struct Page {
    uint32_t num_users = 0;    // bound slots
    uint64_t named_step = 0;   // last step whose rows or copies named it
    uint64_t copied_step = 0;  // in which it was made a copy
    std::vector<uint64_t> contents;
    std::vector<uint64_t> filled_step;  // of each position
  };

  void Bind(const shm::PlanSlot& bind);
  void Copy(uint64_t step, const shm::PlanCopy& copy);
  void CheckPrefix(uint64_t step, const Bound& bound, const shm::PlanRow& row) const;
  void Name(uint64_t step, const shm::PlanRow& row, Bound* bound);
  void Compute(uint64_t step, uint64_t seed, const Bound& bound, const shm::PlanRow& row);

  std::span<shm::RequestSlot> slots_;
  std::span<std::byte> arena_;
  const ModelFacts model_;
  std::vector<Bound> bound_;
  std::vector<Page> pages_;
  uint64_t completed_step_ = 0;
};

}  // namespace penstock::scheduler
