// The policy against a recording: a Batch is fed what the recorded one was fed, and what it
// composes is compared with what was recorded. Stops at the first difference. Pure; not
// thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/status.h"
#include "scheduler/batch.h"
#include "scheduler/record/recorded_requests.h"

namespace penstock::scheduler {

class PolicyReplay {
 public:
  // `check_invariants`: Batch's, after every event; a breach ends the process.
  PolicyReplay(const record::Header& header, bool check_invariants);

  // Carries out the next event. The first difference in words, or none so far. INVALID_ARGUMENT:
  // no scheduler can have recorded that.
  absl::StatusOr<std::optional<std::string>> Take(const record::Event& event);

  // A recording without an end: its scheduler may have died composing the next step. So does this,
  // if the policy is as it was.
  void ComposeOnce();

  uint64_t num_steps() const { return num_steps_; }
  uint64_t num_requests() const { return requests_.num_taken(); }
  uint64_t num_epochs() const { return num_epochs_; }

 private:
  using Difference = absl::StatusOr<std::optional<std::string>>;
  absl::Status TakeReset(const record::Reset& reset);
  absl::Status TakeResults(const record::Results& results);
  absl::Status TakeCompleteStep(uint64_t step);
  Difference TakeCompose(const record::Compose& compose);
  Difference TakeLoseRanks(const record::LoseRanks& lose);

  std::vector<shm::RequestSlot> slots_;
  std::vector<std::byte> arena_;
  const bool check_invariants_;
  Batch batch_;
  RecordedRequests requests_;
  uint64_t epoch_ = 0, next_step_ = 1, completed_step_ = 0;
  bool serving_ = false;
  uint64_t num_steps_ = 0, num_epochs_ = 0;
  PlanRecord now_, recorded_;
};

}  // namespace penstock::scheduler
