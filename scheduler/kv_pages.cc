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
  announced_.clear();
  expected_.clear();
  tails_.clear();
}

void KvPages::Forget(Request* request) {
  request->pages.clear();
  request->num_shared = 0;
  request->announced_begin = request->announced_end = 0;
  request->offers_tail = false;
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

// Makes the tail's key, unless it is there. False: the tail is empty.
bool KvPages::NeedTailKey(Request* request) const {
  const auto length = static_cast<uint32_t>(request->ids.size());
  const uint32_t num_pages = (length - 1) / page_size_;
  const uint32_t begin = num_pages * page_size_;
  if (begin == length - 1) return false;
  if (request->tail_length == length) return true;
  NeedKeys(request, num_pages);
  const PageKey parent = num_pages == 0 ? RootKey(*prefix_secret_, request->cache_salt)
                                        : request->page_keys[num_pages - 1];
  const std::span<const int32_t> ids = request->ids;
  request->tail_key = NextKey(*prefix_secret_, parent, ids.subspan(begin, length - 1 - begin));
  request->tail_length = length;
  return true;
}

KvPages::Prefix KvPages::FindPrefix(Request* request) {
  if (!takes(*request)) return {};
  NeedKeys(request, num_full(*request));
  const std::span<const PageKey> keys = request->page_keys;
  const auto most = static_cast<uint32_t>((request->ids.size() - 1) / page_size_);
  const PrefixTree::Match match = tree_.Longest(keys.first(most));
  Prefix prefix{.num_ids = match.num_pages * page_size_,
                .num_pages = match.num_pages,
                .num_unreferenced = match.num_unreferenced};
  if (match.num_pages < num_full(*request)) {
    const PageKey& next = keys[match.num_pages];
    if (match.num_pages < most && (announced_.contains(next) || expected_.contains(next))) {
      prefix.being_computed = true;
      return prefix;
    }
    expected_.insert(next);
  }
  if (match.num_pages == most && !tails_.empty() && NeedTailKey(request)) {
    if (const auto found = tails_.find(request->tail_key); found != tails_.end()) {
      prefix.tail = found->second;
      prefix.num_ids = static_cast<uint32_t>(request->ids.size()) - 1;
    }
  }
  return prefix;
}

void KvPages::TakePrefix(Request* request, const Prefix& prefix) {
  tree_.Acquire(std::span(request->page_keys).first(prefix.num_pages), &request->pages);
  request->num_shared = prefix.num_pages;
  if (!gives(*request) || !NeedTailKey(request)) request->tail_length = 0;
  if (!takes(*request)) return;
  Announce(request, prefix.num_pages, num_full(*request));
  if (request->num_preemptions > 0) return;
  request->cached_tokens = std::min(prefix.num_ids, request->prompt_len);
  prefix_stats_.queries += request->prompt_len;
  prefix_stats_.hits += request->cached_tokens;
}

void KvPages::Announce(Request* request, uint32_t begin, uint32_t end) {
  for (uint32_t i = begin; i < end; ++i) {
    ++announced_[request->page_keys[i]];
  }
  request->announced_begin = begin;
  request->announced_end = end;
}

// Of what a request has announced, the pages before until_page.
void KvPages::Withdraw(Request* request, uint32_t until_page) {
  const uint32_t end = std::min(until_page, request->announced_end);
  for (uint32_t& i = request->announced_begin; i < end; ++i) {
    const auto found = announced_.find(request->page_keys[i]);
    if (--found->second == 0) announced_.erase(found);
  }
}

// The tail of the ids with which a request was admitted is in its page.
void KvPages::OfferTail(Request* request) {
  request->offers_tail = tails_.try_emplace(request->tail_key, request).second;
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
  if (!gives(*request)) return;
  if (start / page_size_ < end / page_size_ || end == request->tail_length) {
    fills_.push_back({step, request, end});
  }
}

// Offers what a step has filled: to the tree, as long as it has not got the like of it.
void KvPages::Share(const Fill& fill) {
  Request* request = fill.request;
  if (request == nullptr) return;
  // (All these ids are known, unless the step's results were nonsense and the ranks are given up.)
  const auto num_full =
      static_cast<uint32_t>(std::min<size_t>(fill.computed, request->ids.size()) / page_size_);
  NeedKeys(request, num_full);
  Withdraw(request, num_full);
  if (fill.computed == request->tail_length) OfferTail(request);
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
  Withdraw(request, request->announced_end);
  if (request->offers_tail) tails_.erase(request->tail_key);
  Quarantine given{.until_step = last_step,
                   .num_freed = static_cast<uint32_t>(request->pages.size()),
                   .num_shared = request->num_shared,
                   .pages = std::move(request->pages),
                   .keys = {}};
  if (gives(*request)) {
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

// What is announced and offered is what those who hold pages say.
void KvPages::CheckOffers(std::span<Request* const> holders) const {
  decltype(announced_) announced;
  size_t num_tails = 0;
  for (const Request* request : holders) {
    if (request == nullptr) continue;
    CHECK(gives(*request) || request->num_shared + request->announced_end == 0);
    for (uint32_t i = request->announced_begin; i < request->announced_end; ++i) {
      ++announced[request->page_keys[i]];
    }
    if (!request->offers_tail) continue;
    ++num_tails;
    CHECK(tails_.at(request->tail_key) == request);
  }
  CHECK(announced == announced_ && num_tails == tails_.size());
}

void KvPages::CheckInvariants(std::span<Request* const> holders) const {
  CheckAccounts(holders);
  tree_.CheckInvariants();
  CheckOffers(holders);
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
