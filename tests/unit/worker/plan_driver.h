// Plays the scheduler for the worker's tests and benchmark: owns a segment, writes plans, reads
// results. Requests get pages from one free list; a slot is a request. One thread.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/shm/ring.h"
#include "common/shm/segment.h"

namespace penstock::worker {

struct StepResult {
  shm::ResultHeader header;
  struct Row {
    shm::ResultRow row;
    std::vector<shm::ResultTop> top;
  };
  std::vector<Row> rows;
};

struct DriverRequest {
  std::vector<int32_t> ids;  // prompt, then outputs as they come
  shm::SamplingRecord sampling = {};
  int prompt_len = 0;
};

// Greedy, no log-probabilities.
shm::SamplingRecord GreedySampling();

class PlanDriver {
 public:
  static absl::StatusOr<std::unique_ptr<PlanDriver>> Create(const std::string& engine_id,
                                                            const shm::Geometry& geometry);
  ~PlanDriver();  // removes the segment

  shm::Segment& segment() { return *segment_; }
  int num_ranks() const { return static_cast<int>(segment_->geometry().num_ranks); }

  // DEADLINE_EXCEEDED, or INTERNAL with a rank's own error.
  absl::Status WaitReady(int64_t timeout_ms);
  // Begins an epoch: all slots and pages are free again. Waits until every rank has.
  absl::Status Reset(int64_t timeout_ms = 60'000);

  // Binds a free slot in the next plan and reserves pages for max_len ids; returns the slot.
  uint32_t Add(const DriverRequest& request, int max_len);
  void Release(uint32_t slot);  // in the next plan
  // In the next plan, `to`'s page of that index becomes what `from`'s is.
  void CopyPage(uint32_t from, uint32_t to, size_t index) {
    copies_.push_back({pages_of_slot_[from][index], pages_of_slot_[to][index]});
  }

  // Writes a step with these rows and what has gathered since the last one; returns its number.
  uint64_t Submit(const std::vector<shm::PlanRow>& rows);
  // For plans that no scheduler would write.
  void SubmitRaw(const shm::PlanHeader& header, const void* body, size_t bytes);
  // The next result of a rank. Fails when the rank has died or failed.
  absl::StatusOr<StepResult> Result(int rank, int64_t timeout_ms = 60'000);
  // Rank 0's result of the oldest step that was submitted, which must be `step`; all ranks must
  // agree on the hash.
  absl::StatusOr<StepResult> Finish(uint64_t step);
  // One step, start to end.
  absl::StatusOr<StepResult> Step(const std::vector<shm::PlanRow>& rows) {
    return Finish(Submit(rows));
  }

  uint64_t epoch() const { return epoch_; }
  shm::RequestSlot& slot(uint32_t index) { return segment_->slot(index); }

 private:
  PlanDriver() = default;
  absl::Status WaitFor(const std::function<bool()>& condition, int64_t timeout_ms,
                       const char* what);
  template <typename T>
  uint64_t ToArena(const std::vector<T>& values);

  std::unique_ptr<shm::Segment> segment_;
  std::string engine_id_;
  std::unique_ptr<shm::RingWriter> plans_;
  std::vector<shm::RingReader> results_;
  std::vector<shm::PlanSlot> releases_, binds_;
  std::vector<shm::PlanAppend> appends_;
  std::vector<shm::PlanCopy> copies_;
  std::vector<uint32_t> free_slots_, free_pages_;
  std::map<uint32_t, std::vector<uint32_t>> pages_of_slot_;
  uint64_t epoch_ = 0, step_ = 0, arena_used_ = 0;
};

// Runs requests to max_new ids each, all of them in every step, prompts in chunks of `chunk` ids.
// `ahead`: how many steps are submitted before a result is waited for, as the scheduler does.
// Returns each one's sampled rows. Results of rank 0.
absl::StatusOr<std::vector<std::vector<shm::ResultRow>>> GenerateRows(
    PlanDriver* driver, const std::vector<DriverRequest>& requests, int max_new, int chunk,
    int ahead = 0);

// Their ids alone.
absl::StatusOr<std::vector<std::vector<int32_t>>> Generate(
    PlanDriver* driver, const std::vector<DriverRequest>& requests, int max_new, int chunk);

}  // namespace penstock::worker
