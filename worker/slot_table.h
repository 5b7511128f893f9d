// What a rank knows of the requests that are bound to slots: pages, lengths, sampling parameters.
// Changed by plan records alone. Everything a plan or a request object says is checked here before
// it can reach a kernel: an error means that scheduler and worker disagree, and ends the worker.
// One thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "common/shm/layout.h"
#include "kernels/ops.h"

namespace penstock::worker {

struct SlotLimits {
  int num_slots = 0;
  int num_pages = 0;
  int page_size = 0;      // tokens
  int max_model_len = 0;  // ids of a request, prompt and output
  int vocab_size = 0;
};

struct SlotState {
  bool bound = false;
  uint32_t generation = 0;
  int32_t num_pages = 0;
  int32_t prompt_len = 0;
  int32_t num_ids = 0;  // ids [0, num_ids) are, or by the plans so far will be, in the token table
  uint64_t last_step = 0;           // in which it had a row
  std::span<const int32_t> prompt;  // in the segment's arena, valid while bound
  int32_t num_top_logprobs = -1;
  int32_t num_prompt_logprobs = -1;
  kernels::SamplingParams sampling;  // its spans are views of the arena
};

class SlotTable {
 public:
  explicit SlotTable(const SlotLimits& limits);

  void Reset();
  absl::Status Release(const shm::PlanSlot& release);
  // `request` is the slot's request object, `arena` the segment's. On success the state's
  // known_ids are to be copied to the device.
  absl::Status Bind(const shm::PlanSlot& bind, const shm::RequestSlot& request,
                    std::span<const std::byte> arena, std::span<const int32_t>* known_ids);
  absl::Status Append(const shm::PlanAppend& append);
  // Checks that the row can be computed and accounts for the id it yields.
  absl::Status TakeRow(const shm::PlanRow& row, uint64_t step);

  const SlotState& state(uint32_t slot) const { return states_[slot]; }
  const int32_t* page_table() const { return pages_.data(); }  // [num_slots, max_pages]
  int num_bound() const { return num_bound_; }
  int max_pages() const { return static_cast<int>(max_pages_); }  // of a slot
  const SlotLimits& limits() const { return limits_; }

 private:
  absl::Status CheckBound(uint32_t slot, const char* what) const;

  const SlotLimits limits_;
  const size_t max_pages_;
  int num_bound_ = 0;
  std::vector<SlotState> states_;
  std::vector<int32_t> pages_;  // [num_slots, max_pages]
};

}  // namespace penstock::worker
