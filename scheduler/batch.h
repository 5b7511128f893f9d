// The requests that wait and run, and what they hold of slots, KV pages and arena. Composes steps
// with policy.h and takes up what the ranks report. Writes RequestSlots and the arena; does no
// other I/O, knows no clock. Not thread-safe.
//
// Slots and arena space pass through a quarantine: they are free again once every rank has
// completed the plan that releases the slot. The pages' own, and who shares them: kv_pages.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "common/shm/layout.h"
#include "scheduler/admission_margin.h"
#include "scheduler/arena.h"
#include "scheduler/kv_pages.h"
#include "scheduler/length_estimate.h"
#include "scheduler/plan_record.h"
#include "scheduler/policy.h"
#include "scheduler/request.h"
#include "scheduler/waiting_queue.h"

namespace penstock::scheduler {

class Batch {
 public:
  // Of all pages: what tenants who have more than their share leave to those who have not, so that
  // these need not wait for the others' requests to end.
  static constexpr double kHeadroom = 0.2;

  // `slots` and `arena` are the segment's; they must outlive the batch. The secret is that of the
  // pages' keys; without one no pages are shared.
  Batch(std::span<shm::RequestSlot> slots, std::span<std::byte> arena,
        std::optional<KeySecret> prefix_secret = std::nullopt);

  // Everything is free and steps count from 1 again: the ranks have been reset. Nothing may run.
  void Reset(const ModelFacts& model, uint32_t max_num_batched_tokens);
  // Instead of looking ahead with a WindowEstimate and an AdmissionMargin: another rule and
  // estimate, and a margin that stays, in shares of all pages. For comparison. Nothing may run.
  void UseAdmission(Admission admission, std::unique_ptr<LengthEstimate> lengths,
                    double margin_share);

  // Puts a request into the waiting queue. The batch does not own it.
  void Enqueue(Request* request);
  // Takes a request out, whatever its state; results of it that are on their way are discarded.
  void Remove(Request* request);
  // Call before Remove, if the request has come to its own end: how long outputs are is learnt.
  void LearnLength(const Request& request);

  // Running decodes that the next step can have a row of.
  uint32_t num_decodes() const;
  // Of the steps from now on, decodes included; at most what Reset was given.
  void SetMaxTokens(uint32_t max_tokens);
  // Composes step `step` (the last one composed + 1). False: there is nothing to do; the number is
  // then not used up. May admit and preempt.
  bool Compose(uint64_t step, PlanRecord* record);

  // The request whose results carry (slot, generation); null if they are to be discarded.
  Request* Find(uint32_t slot, uint32_t generation) const;
  // Every rank has completed this step, and its ids have been taken up. What it filled is shared
  // from now on.
  void CompleteStep(uint64_t step);

  // The ranks are gone, and what they held: whoever ran waits again, in its old place. Those whom
  // it hit for the second time while they were in a plan in flight come back in *failed, removed.
  void LoseRanks(std::vector<Request*>* failed);

  const WaitingQueue& queue() const { return queue_; }
  void SetTenantWeights(absl::flat_hash_map<std::string, double> weights) {
    queue_.SetWeights(std::move(weights));
  }
  size_t num_waiting() const { return queue_.size() + draining_.size(); }
  size_t num_running() const { return requests_.size() - num_holes_; }
  size_t num_free_slots() const { return free_slots_.size(); }
  uint64_t num_preemptions() const { return num_preemptions_; }
  const PrefixStats& prefix_stats() const { return pages_.prefix_stats(); }
  uint32_t num_cached_pages() const { return pages_.num_cached(); }  // held or not
  // Pages that are held (those that only the tree keeps are not) / all, 0..1.
  double PageUsage() const;
  uint64_t arena_bytes() const { return arena_.total_bytes(); }
  // Nothing runs or is in quarantine (requests may wait).
  bool AllFree() const;

  // The sums hold: free, cached, held and quarantined pages are all pages, likewise slots and arena
  // bytes. Ends the process if not. O(running).
  void CheckAccounts() const;
  // Also, each page is in its one place, and the tree counts its holders right. O(pages).
  void CheckInvariants() const;

 private:
  struct Candidate {
    Request* request;
    KvPages::Prefix prefix;
  };
  struct Copy {  // the first page of its own that `to` has is to be a copy of `from`'s
    const Request* from;
    Request* to;
  };
  struct HeldSlot {
    uint64_t until_step;  // 0 as long as no plan has released it
    uint32_t slot;
    uint32_t generation;
    uint64_t arena_offset, arena_bytes;
  };

  void Compact();
  void SortByClass();
  void CountShared();
  void CollectWaiting();
  void Preempt(uint32_t index);
  bool Admit(const Candidate& candidate, PlanRecord* record);
  void AddCopies(uint64_t step, PlanRecord* record);
  void AddRow(const PlannedRow& planned, uint64_t step, PlanRecord* record);
  void ReleaseHoldings(Request* request);
  void Requeue(Request* request);

  std::span<shm::RequestSlot> slots_;
  std::span<std::byte> arena_memory_;
  ModelFacts model_;
  Budget budget_;
  std::unique_ptr<LengthEstimate> lengths_ = std::make_unique<WindowEstimate>();
  AdmissionMargin margin_;
  double fixed_margin_share_ = -1;  // instead of margin_, if not negative
  KvPages pages_;
  Arena arena_;
  uint64_t completed_step_ = 0;

  WaitingQueue queue_;
  uint64_t next_order_ = 1;
  // Running, by class and then oldest admission first, but that those who were just admitted stand
  // last; index i of both is one request. A null request is a hole, left until the next Compose.
  std::vector<RunningView> views_;
  std::vector<Request*> requests_;
  size_t num_holes_ = 0;
  std::vector<Request*> draining_;

  std::vector<uint32_t> free_slots_;
  std::vector<Request*> slot_owner_;     // running or draining; null: results are discarded
  std::vector<HeldSlot> unreleased_;     // to be released by the next plan
  std::deque<HeldSlot> released_slots_;  // in order of until_step
  uint64_t num_preemptions_ = 0;

  std::vector<WaitingView> waiting_views_;  // scratch
  std::vector<Candidate> candidates_;       // scratch; parallel to waiting_views_
  std::vector<Copy> copies_;                // scratch
  StepPlan plan_;                           // scratch
};

}  // namespace penstock::scheduler
