// Ranks against a recording: they are given the recorded plans through a segment, and the ids they
// sample are compared with what was recorded. No policy is run. One thread, which waits for the
// ranks where the recorded scheduler took up their results: so as many steps are in flight as were.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/shm/segment.h"
#include "common/status.h"
#include "scheduler/arena.h"
#include "scheduler/record/plan_words.h"
#include "scheduler/record/recorded_requests.h"
#include "scheduler/worker_link.h"

namespace penstock::scheduler {

class WorkerReplay {
 public:
  struct Options {
    int64_t start_timeout_ns = 0;
    int64_t step_timeout_ns = 0;
    // Called every so often while ranks start, with why they do not serve yet. May be empty; an
    // error ends the wait.
    std::function<absl::Status(const std::string& reason)> on_wait;
  };

  // What ranks of a replay attach to.
  static shm::Geometry GeometryFor(const record::Header& header, uint32_t num_ranks);

  // `segment` was made with GeometryFor.
  WorkerReplay(std::shared_ptr<shm::Segment> segment, Options options);

  // Carries out the next event. The first difference in words, or none so far. INVALID_ARGUMENT: no
  // scheduler can have recorded that. FAILED_PRECONDITION: the ranks' model is not the recorded one
  // (says what to do). DEADLINE_EXCEEDED: the ranks do not get ready.
  absl::StatusOr<std::optional<std::string>> Take(const record::Event& event);
  // Behind the last event: waits for what is in flight, which might be what the recording ended by.
  void Finish();

  uint64_t num_steps() const { return num_steps_; }
  uint64_t num_ids() const { return num_ids_; }  // compared
  uint64_t num_requests() const { return requests_.num_taken(); }
  uint64_t num_epochs() const { return num_epochs_; }
  // Epochs in which the ranks were lost here too where they were lost in the recording: why.
  const std::vector<std::string>& losses() const { return losses_; }

 private:
  using Difference = absl::StatusOr<std::optional<std::string>>;
  struct Slot {
    uint32_t generation = 0;
    uint64_t serial = 0;
    std::string name;  // of the request, which may have ended
    uint64_t arena_offset = 0, arena_bytes = 0;
  };
  struct Release {
    uint64_t step;
    uint64_t arena_offset, arena_bytes;
  };

  absl::Status TakeReset(const record::Reset& reset);
  absl::Status CheckModel(const record::Reset& reset) const;
  absl::Status TakeCompose(const record::Compose& compose);
  absl::Status Bind(const shm::PlanSlot& bind, uint64_t serial);
  absl::Status TakeResults(const record::Results& results);
  Difference TakeCompleteStep(uint64_t step);
  void TakeLoseRanks();
  const shm::ResultHeader* WaitForResult(uint64_t step, std::string* lost);
  Difference CompareIds(const shm::ResultHeader& now) const;
  std::string NameOfSlot(uint32_t slot, uint32_t generation) const;

  const std::shared_ptr<shm::Segment> segment_;
  const Options options_;
  WorkerLink link_;
  RecordedRequests requests_;
  std::vector<Slot> slots_;
  Arena arena_;
  std::deque<Release> releases_;  // in order of step
  PlanRecord plan_;
  std::vector<RecordedId> expected_;  // of the step that is taken up
  uint64_t epoch_ = 0, published_step_ = 0, completed_step_ = 0;
  uint64_t num_steps_ = 0, num_ids_ = 0, num_epochs_ = 0;
  std::vector<std::string> losses_;
};

}  // namespace penstock::scheduler
