// Batch as the engine uses it: with every call that changes it written to a recording, before it is
// carried out, and every plan that comes of one. Without a recorder it is a Batch.
//
// Derived in private: a new function of Batch is not the engine's to call before it has been said
// here whether it is to be recorded (it is if it changes anything; then policy_replay.h must carry
// it out).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "scheduler/batch.h"
#include "scheduler/record/recorder.h"

namespace penstock::scheduler {

class RecordedBatch : private Batch {
 public:
  // `recorder` may be null.
  RecordedBatch(std::span<shm::RequestSlot> slots, std::span<std::byte> arena,
                std::optional<KeySecret> prefix_secret, std::unique_ptr<Recorder> recorder)
      : Batch(slots, arena, prefix_secret), recorder_(std::move(recorder)) {}

  // Of Batch's, with what is to be recorded besides.
  void Reset(uint64_t epoch, const ModelFacts& model, uint32_t max_num_batched_tokens);
  void Enqueue(Request* request, const wire::Submit& submit);  // that it was made of
  void Remove(Request* request);
  void LearnLength(const Request& request);
  void SetMaxTokens(uint32_t max_tokens);
  bool Compose(uint64_t step, PlanRecord* record);
  void CompleteStep(uint64_t step);
  void LoseRanks(std::vector<Request*>* failed);

  // Before the ids of a step are taken up, and before each of them is.
  void BeginResults(const shm::ResultHeader& step);
  void NoteResult(const shm::ResultRow& row);
  // Has what was recorded so far written: before anything that may crash or wait.
  void HandOver() {
    if (recorder_ == nullptr) return;
    results_ = nullptr;
    recorder_->HandOver();
  }

  using Batch::AllFree;
  using Batch::arena_bytes;
  using Batch::CheckAccounts;
  using Batch::CheckInvariants;
  using Batch::Find;
  using Batch::num_decodes;
  using Batch::num_free_slots;
  using Batch::num_preemptions;
  using Batch::num_running;
  using Batch::num_waiting;
  using Batch::PageUsage;
  using Batch::prefix_stats;
  using Batch::queue;
  using Batch::SetTenantWeights;  // in the header

 private:
  bool Recording() const { return recorder_ != nullptr && !recorder_->stopped(); }
  record::Event* Add();

  const std::unique_ptr<Recorder> recorder_;
  uint64_t last_serial_ = 0;
  uint32_t max_tokens_ = 0;             // of a step
  record::Results* results_ = nullptr;  // that rows are being added to
};

}  // namespace penstock::scheduler
