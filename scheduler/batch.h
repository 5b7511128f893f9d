// The requests that wait and run, and what they hold of slots, KV pages and arena. Composes steps
// with policy.h and takes up what the ranks report. Writes RequestSlots and the arena; does no
// other I/O, knows no clock. Not thread-safe.
//
// Slots, arena space and pages pass through a quarantine: pages are free again once every rank has
// completed the last plan with a row that uses them, a slot and its arena space once every rank has
// completed the plan that releases the slot.
//
// Full pages are shared through prefix_tree.h. A request takes the longest chain of its ids' pages
// at its admission, but computes its last id, as a row must sample; one that wants the prompt's
// log-probabilities takes none, as these come from computing it. It gives its pages to the tree as
// soon as every rank has completed the step that fills them; what it cannot give (another request
// had the same ids computed at the same time) it gives when it ends, is removed or preempted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/container/btree_map.h"
#include "common/shm/layout.h"
#include "scheduler/admission_margin.h"
#include "scheduler/arena.h"
#include "scheduler/block_pool.h"
#include "scheduler/length_estimate.h"
#include "scheduler/plan_record.h"
#include "scheduler/policy.h"
#include "scheduler/prefix_tree.h"
#include "scheduler/request.h"

namespace penstock::scheduler {

struct PrefixStats {
  uint64_t queries = 0;  // prompt tokens looked up in the tree; each request once
  uint64_t hits = 0;     // of these, tokens found
};

class Batch {
 public:
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

  // Puts a request into the waiting queue, behind all there are. The batch does not own it.
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

  size_t num_waiting() const { return waiting_.size() + draining_.size(); }
  size_t num_running() const { return requests_.size() - num_holes_; }
  size_t num_free_slots() const { return free_slots_.size(); }
  uint64_t num_preemptions() const { return num_preemptions_; }
  const PrefixStats& prefix_stats() const { return prefix_stats_; }
  uint32_t num_cached_pages() const { return tree_.num_pages(); }  // held or not
  // Pages that are held (those that only the tree keeps are not) / all, 0..1.
  double PageUsage() const;
  uint64_t arena_bytes() const { return arena_.total_bytes(); }
  // Nothing runs or is in quarantine (requests may wait).
  bool AllFree() const;
  // The waiting ones in order.
  std::vector<Request*> Waiting() const;

  // The sums hold: free, cached, held and quarantined pages are all pages, likewise slots and arena
  // bytes. Ends the process if not. O(running).
  void CheckAccounts() const;
  // Also, each page is in its one place, and the tree counts its holders right. O(pages).
  void CheckInvariants() const;

 private:
  struct HeldPages {
    uint64_t until_step;
    uint32_t num_freed;   // of the pages, those that are free then; the others are shared
    uint32_t num_shared;  // of the pages, the first so many are in the tree
    std::vector<uint32_t> pages;
    std::vector<PageKey> keys;  // of those behind them that are full
  };
  struct Fill {  // when step `step` is complete, the ids [0, computed) of a request are in its
                 // pages
    uint64_t step;
    uint32_t slot, generation;
    uint32_t computed;
  };
  struct Candidate {
    Request* request;
    uint32_t num_cached_pages;
  };
  struct HeldSlot {
    uint64_t until_step;  // 0 as long as no plan has released it
    uint32_t slot;
    uint32_t generation;
    uint64_t arena_offset, arena_bytes;
  };

  void Compact();
  uint32_t num_free_pages() const { return pool_.num_free() + tree_.num_unreferenced(); }
  uint32_t TakePage();
  void NeedKeys(Request* request, uint32_t num_pages) const;
  PrefixTree::Match LongestPrefix(Request* request) const;
  void Share(const Fill& fill);
  void FreePages(const HeldPages& held);
  void CountShared();
  void CollectWaiting();
  void Preempt(uint32_t index);
  bool Admit(const Candidate& candidate, PlanRecord* record);
  void TakePrefix(Request* request, uint32_t num_pages, PlanRecord* record);
  void AddRow(const PlannedRow& planned, uint64_t step, PlanRecord* record);
  void ReleaseHoldings(Request* request, uint32_t computed);
  void Requeue(Request* request);

  std::span<shm::RequestSlot> slots_;
  std::span<std::byte> arena_memory_;
  ModelFacts model_;
  Budget budget_;
  std::unique_ptr<LengthEstimate> lengths_ = std::make_unique<WindowEstimate>();
  AdmissionMargin margin_;
  double fixed_margin_share_ = -1;  // instead of margin_, if not negative
  BlockPool pool_{0};
  PrefixTree tree_{0};
  const std::optional<KeySecret> prefix_secret_;
  PrefixStats prefix_stats_;
  Arena arena_;
  uint64_t completed_step_ = 0;

  absl::btree_map<uint64_t, Request*> waiting_;  // by order
  uint64_t next_order_ = 1;
  // Running, oldest admission first; index i of both is one request. A null request is a hole, left
  // until the next Compose.
  std::vector<RunningView> views_;
  std::vector<Request*> requests_;
  size_t num_holes_ = 0;
  std::vector<Request*> draining_;

  std::vector<uint32_t> free_slots_;
  std::vector<Request*> slot_owner_;     // running or draining; null: results are discarded
  std::vector<HeldSlot> unreleased_;     // to be released by the next plan
  std::deque<HeldSlot> released_slots_;  // in order of until_step
  std::vector<HeldPages> held_pages_;
  uint32_t num_held_pages_ = 0;  // in held_pages_, those that become free
  std::deque<Fill> fills_;       // in order of step
  uint64_t num_preemptions_ = 0;

  std::vector<WaitingView> waiting_views_;  // scratch
  std::vector<Candidate> candidates_;       // scratch; parallel to waiting_views_
  std::vector<uint32_t> freed_;             // scratch
  StepPlan plan_;                           // scratch
};

}  // namespace penstock::scheduler
