// The engine's KV pages: which are free, in the prefix tree, held, or in quarantine. A request
// holds what Request::pages names, of which the first num_shared are the tree's and the rest its
// own. Pure bookkeeping; knows no plans. Not thread-safe.
//
// Pages that a request gave up pass through a quarantine: they are free again once every rank has
// completed the last plan that names them.
//
// Full pages are shared through prefix_tree.h. A request takes the longest chain of its ids' pages
// at its admission, but computes its last id, as a row must sample; one that wants the prompt's
// log-probabilities takes none, as these come from computing it. It gives its pages to the tree as
// soon as every rank has completed the step that fills them; what it cannot give (another request
// had the same ids computed at the same time) it gives when it leaves.
//
// Two more things save those the work who come while the same is being computed:
//  - The full pages of an admitted request's ids are announced: by their keys it is known that it
//    computes them. A request whose next page is announced had better wait (being_computed). What
//    is announced is withdrawn when it is computed and when the request leaves, so nobody waits for
//    what nobody computes; a request that waits has announced nothing. Nor does anybody wait long:
//    a plan that admits somebody has planned all running prompts to their ends (policy.h), so it is
//    for steps in flight.
//  - What lies behind the last full page, but for the last id, is the tail of a request's ids.
//    As long as a request runs that had the same ids, and has computed them, the page is copied:
//    the owner only appends behind them. So forks of one prompt compute one id each.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "scheduler/block_pool.h"
#include "scheduler/prefix_tree.h"
#include "scheduler/request.h"

namespace penstock::scheduler {

struct PrefixStats {
  uint64_t queries = 0;  // prompt tokens looked up; each request once
  uint64_t hits = 0;     // of these, tokens found
};

class KvPages {
 public:
  // The secret is that of the pages' keys; without one no pages are shared. There are no pages yet.
  explicit KvPages(std::optional<KeySecret> prefix_secret) : prefix_secret_(prefix_secret) {}

  // All pages are free and hold nothing; steps count from 1 again. Whoever held some must be told
  // (Forget).
  void Reset(uint32_t num_pages, uint32_t page_size);
  static void Forget(Request* request);

  uint32_t num_pages() const { return pool_.num_pages(); }
  // With those that only the tree keeps: they are evicted when they are needed.
  uint32_t num_free() const { return pool_.num_free() + tree_.num_unreferenced(); }
  // Given up, and free once plans in flight have run.
  uint32_t num_quarantined() const { return num_quarantined_; }
  uint32_t num_cached() const { return tree_.num_pages(); }  // in the tree, held or not
  bool shares() const { return prefix_secret_.has_value(); }
  const PrefixStats& prefix_stats() const { return prefix_stats_; }

  // What a waiting request could have of others now.
  struct Prefix {
    uint32_t num_ids = 0;           // ids [0, num_ids) need not be computed; below all ids
    uint32_t num_pages = 0;         // full pages of these, in the tree
    uint32_t num_unreferenced = 0;  // of these pages, those that count as free as long as it waits
    // Whose next page is to be copied for the ids behind those pages; null: there are none.
    const Request* tail = nullptr;
    bool being_computed = false;  // the next page is: the request had better wait
  };
  // Call for waiting requests in their order, after BeginPlan. They count as admitted until the
  // next BeginPlan, those with being_computed excepted: so of requests that begin alike and come in
  // one plan, those behind the first wait for it.
  void BeginPlan() { expected_.clear(); }
  Prefix FindPrefix(Request* request);
  // A request that holds nothing is admitted, with the pages of FindPrefix.
  void TakePrefix(Request* request, const Prefix& prefix);
  // The request takes one more page, of its own; num_free() must not be 0.
  uint32_t TakePage(Request* request);
  // Plan `step` computes ids [start, end) of an admitted request.
  void NoteRow(Request* request, uint64_t step, uint32_t start, uint32_t end);
  // The request, of which plans have computed ids [0, computed), gives up all it holds. The last
  // plan that names its pages is `last_step`.
  void Release(Request* request, uint32_t computed, uint64_t last_step);
  // Every rank has completed this step, and its ids have been taken up. What it filled is shared
  // from now on.
  void CompleteStep(uint64_t step);

  // How many of the pages that a request holds others hold as well.
  uint32_t NumHeldByOthers(const Request& request) const;

  // These end the process if something does not hold. `holders`: all that hold pages; null ones
  // are passed over.
  // Free, cached, held and quarantined pages are all pages. O(holders).
  void CheckAccounts(std::span<Request* const> holders) const;
  // Also, each page is in its one place, and the tree counts its holders right. O(pages).
  void CheckInvariants(std::span<Request* const> holders) const;

 private:
  template <typename T>
  using PageMap = absl::flat_hash_map<PageKey, T, PageKeyHash>;
  struct Quarantine {
    uint64_t until_step;
    uint32_t num_freed;   // of the pages, those that are free then; the others are shared
    uint32_t num_shared;  // of the pages, the first so many are in the tree
    std::vector<uint32_t> pages;
    std::vector<PageKey> keys;  // of those behind them that are full
  };
  struct Fill {  // when step `step` is complete, ids [0, computed) of the request are in its pages
    uint64_t step;
    Request* request;  // null: it has left
    uint32_t computed;
  };

  // Whether the request takes what others computed, and whether it gives.
  bool takes(const Request& request) const {
    return gives(request) && !request.wants_prompt_logprobs;
  }
  bool gives(const Request& request) const { return prefix_secret_ && !request.skip_prefix_cache; }
  uint32_t num_full(const Request& request) const {  // pages of its ids
    return static_cast<uint32_t>(request.ids.size() / page_size_);
  }
  void NeedKeys(Request* request, uint32_t num_pages) const;
  bool NeedTailKey(Request* request) const;
  void Announce(Request* request, uint32_t begin, uint32_t end);
  void Withdraw(Request* request, uint32_t until_page);
  void OfferTail(Request* request);
  void Share(const Fill& fill);
  void Free(const Quarantine& given);
  void CheckOffers(std::span<Request* const> holders) const;

  const std::optional<KeySecret> prefix_secret_;
  uint32_t page_size_ = 1;
  BlockPool pool_{0};
  PrefixTree tree_{0};
  PrefixStats prefix_stats_;
  uint64_t completed_step_ = 0;
  std::vector<Quarantine> quarantine_;
  uint32_t num_quarantined_ = 0;  // of their pages, those that become free
  std::deque<Fill> fills_;        // in order of step
  PageMap<uint32_t> announced_;   // by how many requests
  // What the requests that FindPrefix has seen in this plan would announce: of each the next page,
  // which is the one that others meet.
  absl::flat_hash_set<PageKey, PageKeyHash> expected_;
  PageMap<Request*> tails_;      // of each one owner
  std::vector<uint32_t> freed_;  // scratch
};

}  // namespace penstock::scheduler
