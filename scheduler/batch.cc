#include "scheduler/batch.h"

#include <algorithm>

#include "common/log.h"

namespace penstock::scheduler {

Batch::Batch(std::span<shm::RequestSlot> slots, std::span<std::byte> arena,
             std::optional<KeySecret> prefix_secret)
    : slots_(slots),
      arena_memory_(arena),
      prefix_secret_(prefix_secret),
      arena_(arena.size()),
      slot_owner_(slots.size()) {
  for (uint32_t slot = static_cast<uint32_t>(slots.size()); slot > 0; --slot) {
    free_slots_.push_back(slot - 1);
  }
}

void Batch::Reset(const ModelFacts& model, uint32_t max_num_batched_tokens) {
  CHECK(AllFree());
  model_ = model;
  pool_ = BlockPool(model.num_pages);
  tree_ = PrefixTree(prefix_secret_ ? model.num_pages : 0);
  for (const auto& [order, request] : waiting_) request->page_keys.clear();  // of another page size
  budget_.max_tokens = max_num_batched_tokens;
  completed_step_ = 0;
}

void Batch::UseAdmission(Admission admission, std::unique_ptr<LengthEstimate> lengths,
                         double margin_share) {
  CHECK(AllFree());
  budget_.admission = admission;
  lengths_ = std::move(lengths);
  fixed_margin_share_ = margin_share;
}

void Batch::LearnLength(const Request& request) {
  lengths_->Observe(request.num_outputs());
  margin_.Ended();
}

void Batch::Enqueue(Request* request) {
  request->order = next_order_++;
  Requeue(request);
}

void Batch::Requeue(Request* request) {
  request->state = RequestState::kWaiting;
  waiting_.emplace(request->order, request);
}

uint32_t Batch::TakePage() {
  if (pool_.num_free() == 0) {
    const uint32_t evicted = tree_.Evict();
    pool_.Free({&evicted, 1});
  }
  return pool_.Allocate();
}

// Makes the keys of the first pages, whose ids must be known, unless there are any. Each is made
// once in a request's life.
void Batch::NeedKeys(Request* request, uint32_t num_pages) const {
  std::vector<PageKey>& keys = request->page_keys;
  const std::span<const int32_t> ids = request->ids;
  while (keys.size() < num_pages) {
    const PageKey parent =
        keys.empty() ? RootKey(*prefix_secret_, request->cache_salt) : keys.back();
    const auto page_ids = ids.subspan(keys.size() * model_.page_size, model_.page_size);
    keys.push_back(NextKey(*prefix_secret_, parent, page_ids));
  }
}

PrefixTree::Match Batch::LongestPrefix(Request* request) const {
  if (!prefix_secret_ || request->wants_prompt_logprobs) return {};
  const auto num_full = static_cast<uint32_t>((request->ids.size() - 1) / model_.page_size);
  NeedKeys(request, num_full);
  return tree_.Longest(std::span(request->page_keys).first(num_full));
}

// Gives the tree the pages that a step has filled, as long as it has not got the like of them.
void Batch::Share(const Fill& fill) {
  Request* request = Find(fill.slot, fill.generation);
  if (request == nullptr || request->state != RequestState::kRunning) return;
  // (All these ids are known, unless the step's results were nonsense and the ranks are given up.)
  const auto num_full = static_cast<uint32_t>(std::min<size_t>(fill.computed, request->ids.size()) /
                                              model_.page_size);
  NeedKeys(request, num_full);
  for (uint32_t& i = request->num_shared; i < num_full; ++i) {
    const uint32_t parent = i == 0 ? PrefixTree::kNone : request->pages[i - 1];
    if (!tree_.Insert(request->page_keys[i], parent, request->pages[i])) return;
  }
}

void Batch::FreePages(const HeldPages& held) {
  freed_.clear();
  tree_.Release(held.pages, held.num_shared, held.keys, &freed_);
  pool_.Free(freed_);
}

// `computed`: as the request's view has it.
void Batch::ReleaseHoldings(Request* request, uint32_t computed) {
  unreleased_.push_back({0, request->slot, slots_[request->slot].generation, request->arena_offset,
                         request->arena_bytes});
  HeldPages held{.until_step = request->last_step,
                 .num_freed = static_cast<uint32_t>(request->pages.size()),
                 .num_shared = request->num_shared,
                 .pages = std::move(request->pages),
                 .keys = {}};
  request->pages.clear();
  request->num_shared = 0;
  if (prefix_secret_) {
    // An id that was sampled in a step whose results have not come is in a page, but is not known.
    const auto known = std::min<size_t>(computed, request->ids.size());
    const auto num_full = static_cast<uint32_t>(known / model_.page_size);
    NeedKeys(request, num_full);
    held.keys.assign(request->page_keys.begin() + held.num_shared,
                     request->page_keys.begin() + num_full);
    held.num_freed -= tree_.NumHeldByOthers(std::span(held.pages).first(held.num_shared));
  }
  if (held.until_step > completed_step_) {
    num_held_pages_ += held.num_freed;
    held_pages_.push_back(std::move(held));
  } else {
    FreePages(held);
  }
}

void Batch::Remove(Request* request) {
  switch (request->state) {
    case RequestState::kWaiting:
      waiting_.erase(request->order);
      return;
    case RequestState::kDraining:
      std::erase(draining_, request);
      break;
    case RequestState::kRunning:
      request->last_step = views_[request->index].last_step;
      requests_[request->index] = nullptr;
      ++num_holes_;
      ReleaseHoldings(request, views_[request->index].computed);
      break;
  }
  slot_owner_[request->slot] = nullptr;
}

void Batch::Preempt(uint32_t index) {
  Request* request = requests_[index];
  request->last_step = views_[index].last_step;
  requests_[index] = nullptr;
  ++num_holes_;
  ++num_preemptions_;
  ++request->num_preemptions;
  margin_.Preempted();
  ReleaseHoldings(request, views_[index].computed);
  if (request->last_step > completed_step_) {
    // Ids of it are on their way: they are taken up before it waits again.
    request->state = RequestState::kDraining;
    draining_.push_back(request);
  } else {
    slot_owner_[request->slot] = nullptr;
    Requeue(request);
  }
}

void Batch::Compact() {
  if (num_holes_ == 0) return;
  uint32_t to = 0;
  for (size_t from = 0; from < requests_.size(); ++from) {
    if (requests_[from] == nullptr) continue;
    views_[to] = views_[from];
    requests_[to] = requests_[from];
    requests_[to]->index = to;
    ++to;
  }
  views_.resize(to);
  requests_.resize(to);
  num_holes_ = 0;
}

void Batch::CollectWaiting() {
  waiting_views_.clear();
  candidates_.clear();
  uint64_t tokens = 0, pages = 0;
  for (const auto& [order, request] : waiting_) {
    // The pages bound the plan record, as the ring has room for a page a token (worker_link.h).
    if (waiting_views_.size() == free_slots_.size() ||
        std::max(tokens, pages) >= budget_.max_tokens) {
      return;
    }
    const PrefixTree::Match match = LongestPrefix(request);
    const auto length = static_cast<uint32_t>(request->ids.size());
    const uint32_t cached = match.num_pages * model_.page_size;
    waiting_views_.push_back({.length = length,
                              .limit = LengthLimit(*request, model_),
                              .prompt_len = request->prompt_len,
                              .rank = RankOf(request->order),
                              .cached = cached,
                              .cached_free = match.num_unreferenced});
    candidates_.push_back({request, match.num_pages});
    tokens += length - cached;
    pages += PagesFor(length, model_.page_size);
  }
}

void Batch::TakePrefix(Request* request, uint32_t num_pages, PlanRecord* record) {
  tree_.Acquire(std::span(request->page_keys).first(num_pages), &request->pages);
  request->num_shared = num_pages;
  for (uint32_t page : request->pages) record->appends.push_back({request->slot, page});
  if (request->num_preemptions > 0 || !prefix_secret_ || request->wants_prompt_logprobs) return;
  request->cached_tokens = std::min(num_pages * model_.page_size, request->prompt_len);
  prefix_stats_.queries += request->prompt_len;
  prefix_stats_.hits += request->cached_tokens;
}

bool Batch::Admit(const Candidate& candidate, PlanRecord* record) {
  Request* request = candidate.request;
  const uint64_t bytes = ArenaBytes(*request);
  const std::optional<uint64_t> offset = arena_.Allocate(bytes);
  if (!offset) return false;
  waiting_.erase(request->order);
  request->arena_offset = *offset;
  request->arena_bytes = bytes;
  request->slot = free_slots_.back();
  free_slots_.pop_back();
  request->state = RequestState::kRunning;
  request->index = static_cast<uint32_t>(requests_.size());

  shm::RequestSlot& slot = slots_[request->slot];
  slot.generation += 1;
  WriteSlot(*request, arena_memory_.data(), *offset, &slot);

  record->binds.push_back({request->slot, slot.generation});
  slot_owner_[request->slot] = request;
  requests_.push_back(request);
  views_.push_back({.computed = candidate.num_cached_pages * model_.page_size,
                    .length = slot.known_len,
                    .limit = LengthLimit(*request, model_),
                    .num_pages = candidate.num_cached_pages,
                    .prompt_len = request->prompt_len,
                    .rank = RankOf(request->order),
                    .num_cached = candidate.num_cached_pages});
  TakePrefix(request, candidate.num_cached_pages, record);
  return true;
}

void Batch::AddRow(const PlannedRow& planned, uint64_t step, PlanRecord* record) {
  RunningView& view = views_[planned.index];
  Request* request = requests_[planned.index];
  const bool first = view.last_step == 0;
  const uint32_t end = first ? view.length : planned.start + planned.num_tokens;
  for (const uint32_t needed = PagesFor(end, model_.page_size); view.num_pages < needed;
       ++view.num_pages) {
    request->pages.push_back(TakePage());
    record->appends.push_back({request->slot, request->pages.back()});
  }
  uint32_t flags = planned.sample ? uint32_t{shm::kRowSample} : 0;
  if (request->wants_prompt_logprobs && planned.start + 1 < request->prompt_len) {
    flags |= shm::kRowPromptLogprobs;
  }
  record->rows.push_back({request->slot, planned.start, planned.num_tokens, flags});
  view.computed = planned.start + planned.num_tokens;
  if (prefix_secret_ && planned.start / model_.page_size < view.computed / model_.page_size) {
    fills_.push_back({step, request->slot, slots_[request->slot].generation, view.computed});
  }
  view.length += planned.sample;
  view.last_step = step;
}

// RunningView::num_shared, where it is needed.
void Batch::CountShared() {
  if (!prefix_secret_ || num_free_pages() >= requests_.size()) return;
  for (size_t i = 0; i < requests_.size(); ++i) {
    const Request& request = *requests_[i];
    views_[i].num_shared =
        tree_.NumHeldByOthers(std::span(request.pages).first(request.num_shared));
  }
}

bool Batch::Compose(uint64_t step, PlanRecord* record) {
  record->Clear();
  Compact();
  CollectWaiting();
  CountShared();
  budget_.watermark_pages = fixed_margin_share_ < 0
                                ? margin_.Pages(model_.num_pages)
                                : static_cast<uint32_t>(fixed_margin_share_ * model_.num_pages);
  PolicyState state{views_,
                    waiting_views_,
                    completed_step_,
                    model_.page_size,
                    num_free_pages(),
                    num_held_pages_,
                    static_cast<uint32_t>(free_slots_.size()),
                    lengths_.get()};
  Plan(state, budget_, &plan_);
  for (uint32_t index : plan_.preempted) Preempt(index);
  // Those who are admitted take what they share before anyone takes, and evicts, a page. If no gap
  // in the arena is large enough for one, it and those behind it wait on.
  for (uint32_t i = 0; i < plan_.num_admitted && Admit(candidates_[i], record); ++i) {
  }
  for (const PlannedRow& row : plan_.rows) {
    if (row.index >= requests_.size()) break;
    AddRow(row, step, record);
  }
  for (HeldSlot& held : unreleased_) {
    held.until_step = step;
    record->releases.push_back({held.slot, held.generation});
    released_slots_.push_back(held);
  }
  unreleased_.clear();
  return !record->empty();
}

Request* Batch::Find(uint32_t slot, uint32_t generation) const {
  Request* request = slot_owner_[slot];
  return request != nullptr && slots_[slot].generation == generation ? request : nullptr;
}

void Batch::CompleteStep(uint64_t step) {
  completed_step_ = step;
  for (; !fills_.empty() && fills_.front().step <= step; fills_.pop_front()) Share(fills_.front());
  std::erase_if(held_pages_, [&](const HeldPages& held) {
    if (held.until_step > step) return false;
    num_held_pages_ -= held.num_freed;
    FreePages(held);
    return true;
  });
  while (!released_slots_.empty() && released_slots_.front().until_step <= step) {
    const HeldSlot& held = released_slots_.front();
    arena_.Free(held.arena_offset, held.arena_bytes);
    free_slots_.push_back(held.slot);
    released_slots_.pop_front();
  }
  std::erase_if(draining_, [&](Request* request) {
    if (request->last_step > step) return false;
    slot_owner_[request->slot] = nullptr;
    Requeue(request);
    return true;
  });
}

void Batch::LoseRanks(std::vector<Request*>* failed) {
  Compact();
  for (size_t i = 0; i < requests_.size(); ++i) requests_[i]->last_step = views_[i].last_step;
  requests_.insert(requests_.end(), draining_.begin(), draining_.end());
  for (Request* request : requests_) {
    request->pages.clear();
    request->num_shared = 0;
    ++request->num_deaths;
    ++request->num_preemptions;
    if (request->num_deaths >= 2 && request->last_step > completed_step_) {
      request->state = RequestState::kWaiting;  // holds nothing; Remove would find it nowhere
      failed->push_back(request);
    } else {
      Requeue(request);
    }
  }
  num_preemptions_ += requests_.size();
  requests_.clear();
  views_.clear();
  draining_.clear();
  unreleased_.clear();
  released_slots_.clear();
  held_pages_.clear();
  num_held_pages_ = 0;
  fills_.clear();
  pool_ = BlockPool(model_.num_pages);
  tree_ = PrefixTree(prefix_secret_ ? model_.num_pages : 0);
  arena_ = Arena(arena_memory_.size());
  free_slots_.clear();
  for (uint32_t slot = static_cast<uint32_t>(slots_.size()); slot > 0; --slot) {
    free_slots_.push_back(slot - 1);
  }
  std::fill(slot_owner_.begin(), slot_owner_.end(), nullptr);
}

double Batch::PageUsage() const {
  const uint32_t all = pool_.num_pages();
  return all == 0 ? 0.0 : 1.0 - static_cast<double>(num_free_pages()) / all;
}

bool Batch::AllFree() const {
  return num_running() == 0 && draining_.empty() && free_slots_.size() == slots_.size() &&
         num_free_pages() == pool_.num_pages() && arena_.free_bytes() == arena_.total_bytes();
}

std::vector<Request*> Batch::Waiting() const {
  std::vector<Request*> waiting;
  for (const auto& [order, request] : waiting_) waiting.push_back(request);
  return waiting;
}

}  // namespace penstock::scheduler
