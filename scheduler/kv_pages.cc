#include "scheduler/kv_pages.h"

#include <algorithm>

#include "common/log.h"

namespace penstock::scheduler {

void KvPages::Reset(uint32_t num_pages, uint32_t page_size) {
  page_size_ = page_size;
  pool_ = BlockPool(num_pages);
  tree_ = PrefixTree(prefix_secret_ ? num_pages : 0);
  completed_step_ = 0;
  quarantine_.clear();
  num_quarantined_ = 0;
  fills_.clear();
}

void KvPages::Forget(Request* request) {
  request->pages.clear();
  request->num_shared = 0;
}

// Makes the keys of the first pages, whose ids must be known, unless there are any. Each is made
// once in a request's life.
void KvPages::NeedKeys(Request* request, uint32_t num_pages) const {
  std::vector<PageKey>& keys = request->page_keys;
  const std::span<const int32_t> ids = request->ids;
  while (keys.size() < num_pages) {
    const PageKey parent =
        keys.empty() ? RootKey(*prefix_secret_, request->cache_salt) : keys.back();
    keys.push_back(
        NextKey(*prefix_secret_, parent, ids.subspan(keys.size() * page_size_, page_size_)));
  }
}

PrefixTree::Match KvPages::LongestPrefix(Request* request) const {
  if (!prefix_secret_ || request->wants_prompt_logprobs) return {};
  const auto num_full = static_cast<uint32_t>((request->ids.size() - 1) / page_size_);
  NeedKeys(request, num_full);
  return tree_.Longest(std::span(request->page_keys).first(num_full));
}

void KvPages::TakePrefix(Request* request, uint32_t num_pages) {
  tree_.Acquire(std::span(request->page_keys).first(num_pages), &request->pages);
  request->num_shared = num_pages;
  if (request->num_preemptions > 0 || !prefix_secret_ || request->wants_prompt_logprobs) return;
  request->cached_tokens = std::min(num_pages * page_size_, request->prompt_len);
  prefix_stats_.queries += request->prompt_len;
  prefix_stats_.hits += request->cached_tokens;
}

uint32_t KvPages::TakePage(Request* request) {
  if (pool_.num_free() == 0) {
    const uint32_t evicted = tree_.Evict();
    pool_.Free({&evicted, 1});
  }
  request->pages.push_back(pool_.Allocate());
  return request->pages.back();
}

void KvPages::NoteRow(Request* request, uint64_t step, uint32_t start, uint32_t end) {
  if (prefix_secret_ && start / page_size_ < end / page_size_) {
    fills_.push_back({step, request, end});
  }
}

// Gives the tree the pages that a step has filled, as long as it has not got the like of them.
void KvPages::Share(const Fill& fill) {
  Request* request = fill.request;
  if (request == nullptr) return;
  // (All these ids are known, unless the step's results were nonsense and the ranks are given up.)
  const auto num_full =
      static_cast<uint32_t>(std::min<size_t>(fill.computed, request->ids.size()) / page_size_);
  NeedKeys(request, num_full);
  for (uint32_t& i = request->num_shared; i < num_full; ++i) {
    const uint32_t parent = i == 0 ? PrefixTree::kNone : request->pages[i - 1];
    if (!tree_.Insert(request->page_keys[i], parent, request->pages[i])) return;
  }
}

void KvPages::Free(const Quarantine& given) {
  freed_.clear();
  tree_.Release(given.pages, given.num_shared, given.keys, &freed_);
  pool_.Free(freed_);
}

void KvPages::Release(Request* request, uint32_t computed, uint64_t last_step) {
  for (Fill& fill : fills_) {
    if (fill.request == request) fill.request = nullptr;
  }
  Quarantine given{.until_step = last_step,
                   .num_freed = static_cast<uint32_t>(request->pages.size()),
                   .num_shared = request->num_shared,
                   .pages = std::move(request->pages),
                   .keys = {}};
  if (prefix_secret_) {
    // An id that was sampled in a step whose results have not come is in a page, but is not known.
    const auto known = std::min<size_t>(computed, request->ids.size());
    const auto num_full = static_cast<uint32_t>(known / page_size_);
    NeedKeys(request, num_full);
    given.keys.assign(request->page_keys.begin() + given.num_shared,
                      request->page_keys.begin() + num_full);
    given.num_freed -= tree_.NumHeldByOthers(std::span(given.pages).first(given.num_shared));
  }
  Forget(request);
  if (given.until_step > completed_step_) {
    num_quarantined_ += given.num_freed;
    quarantine_.push_back(std::move(given));
  } else {
    Free(given);
  }
}

void KvPages::CompleteStep(uint64_t step) {
  completed_step_ = step;
  for (; !fills_.empty() && fills_.front().step <= step; fills_.pop_front()) Share(fills_.front());
  std::erase_if(quarantine_, [&](const Quarantine& given) {
    if (given.until_step > step) return false;
    num_quarantined_ -= given.num_freed;
    Free(given);
    return true;
  });
}

uint32_t KvPages::NumHeldByOthers(const Request& request) const {
  return tree_.NumHeldByOthers(std::span(request.pages).first(request.num_shared));
}

void KvPages::CheckAccounts(std::span<Request* const> holders) const {
  uint64_t num_pages = pool_.num_free() + tree_.num_pages();
  for (const Request* request : holders) {
    if (request != nullptr) num_pages += request->pages.size() - request->num_shared;
  }
  for (const Quarantine& given : quarantine_) num_pages += given.pages.size() - given.num_shared;
  CHECK(num_pages == pool_.num_pages());
}

void KvPages::CheckInvariants(std::span<Request* const> holders) const {
  CheckAccounts(holders);
  tree_.CheckInvariants();
  std::vector<bool> seen(pool_.num_pages());  // in the pool, in the tree or somebody's own
  std::vector<uint32_t> num_references(pool_.num_pages());
  auto put = [&](uint32_t page) {
    CHECK(!seen[page]);
    seen[page] = true;
  };
  for (uint32_t page = 0; page < pool_.num_pages(); ++page) {
    if (pool_.is_free(page)) put(page);
    if (prefix_secret_ && tree_.Contains(page)) put(page);
  }
  auto hold = [&](const std::vector<uint32_t>& pages, uint32_t num_shared) {
    CHECK(num_shared <= pages.size());
    for (size_t i = 0; i < num_shared; ++i) ++num_references[pages[i]];
    for (size_t i = num_shared; i < pages.size(); ++i) put(pages[i]);
  };
  for (const Request* request : holders) {
    if (request != nullptr) hold(request->pages, request->num_shared);
  }
  uint32_t num_quarantined = 0;
  for (const Quarantine& given : quarantine_) {
    CHECK(given.until_step > completed_step_);
    hold(given.pages, given.num_shared);
    num_quarantined += given.num_freed;
  }
  CHECK(num_quarantined == num_quarantined_);
  CHECK(std::find(seen.begin(), seen.end(), false) == seen.end());
  for (uint32_t page = 0; page < pool_.num_pages(); ++page) {
    const uint32_t counted =
        prefix_secret_ && tree_.Contains(page) ? tree_.num_references(page) : 0;
    CHECK(num_references[page] == counted);
  }
}

}  // namespace penstock::scheduler
