#include "scheduler/batch.h"

#include <algorithm>

#include "common/log.h"

namespace penstock::scheduler {
namespace {

// Requests that wait for what others compute are passed by those behind them; after so many, which
// cost a look-up a step each, nobody looks further.
constexpr int kMaxHeldBack = 64;

}  // namespace

Batch::Batch(std::span<shm::RequestSlot> slots, std::span<std::byte> arena,
             std::optional<KeySecret> prefix_secret)
    : slots_(slots),
      arena_memory_(arena),
      pages_(prefix_secret),
      arena_(arena.size()),
      slot_owner_(slots.size()) {
  for (uint32_t slot = static_cast<uint32_t>(slots.size()); slot > 0; --slot) {
    free_slots_.push_back(slot - 1);
  }
}

void Batch::Reset(const ModelFacts& model, uint32_t max_num_batched_tokens) {
  CHECK(AllFree());
  model_ = model;
  pages_.Reset(model.num_pages, model.page_size);
  for (Request* request : queue_.All()) {  // their keys are of another page size
    request->page_keys.clear();
    request->tail_length = 0;
  }
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
  request->state = RequestState::kWaiting;
  queue_.Add(request);
}

void Batch::Requeue(Request* request) {
  request->state = RequestState::kWaiting;
  queue_.Return(request);
}

// A running request gives up its slot, arena space and pages.
void Batch::ReleaseHoldings(Request* request) {
  const RunningView& view = views_[request->index];
  request->last_step = view.last_step;
  requests_[request->index] = nullptr;
  ++num_holes_;
  unreleased_.push_back({0, request->slot, slots_[request->slot].generation, request->arena_offset,
                         request->arena_bytes});
  pages_.Release(request, view.computed, view.last_step);
}

void Batch::Remove(Request* request) {
  switch (request->state) {
    case RequestState::kWaiting:
      queue_.Remove(request);
      queue_.Forget(request);
      return;
    case RequestState::kDraining:
      std::erase(draining_, request);
      break;
    case RequestState::kRunning:
      ReleaseHoldings(request);
      break;
    case RequestState::kLost:
      queue_.Forget(request);
      return;
  }
  slot_owner_[request->slot] = nullptr;
  queue_.Forget(request);
}

void Batch::Preempt(uint32_t index) {
  Request* request = requests_[index];
  ++num_preemptions_;
  ++request->num_preemptions;
  margin_.Preempted();
  ReleaseHoldings(request);
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

// The highest class first; within it they stay in the order of their admission. What must not be
// preempted, and goes first for pages and tokens, thereby stands in front.
void Batch::SortByClass() {
  const auto before = [](const RunningView& a, const RunningView& b) {
    return a.priority < b.priority;
  };
  if (std::is_sorted(views_.begin(), views_.end(), before)) return;
  std::stable_sort(requests_.begin(), requests_.end(),
                   [](const Request* a, const Request* b) { return a->priority < b->priority; });
  std::stable_sort(views_.begin(), views_.end(), before);
  for (uint32_t i = 0; i < requests_.size(); ++i) requests_[i]->index = i;
}

void Batch::CollectWaiting() {
  waiting_views_.clear();
  candidates_.clear();
  pages_.BeginPlan();
  uint64_t tokens = 0, pages = 0;
  int num_held_back = 0;
  queue_.BeginTurns();
  while (Request* request = queue_.NextTurn()) {
    // The pages bound the plan record, as the ring has room for a page a token (worker_link.h).
    if (waiting_views_.size() == free_slots_.size() ||
        std::max(tokens, pages) >= budget_.max_tokens || num_held_back == kMaxHeldBack) {
      return;
    }
    const KvPages::Prefix prefix = pages_.FindPrefix(request);
    if (prefix.being_computed) {
      ++num_held_back;
      continue;
    }
    const auto length = static_cast<uint32_t>(request->ids.size());
    waiting_views_.push_back(
        {.length = length,
         .limit = LengthLimit(*request, model_),
         .prompt_len = request->prompt_len,
         .rank = RankOf(request->order),
         .cached = prefix.num_ids,
         .cached_free = prefix.num_unreferenced,
         .over_share = request->num_preemptions == 0 && queue_.IsOverShare(*request)});
    candidates_.push_back({request, prefix});
    tokens += length - prefix.num_ids;
    pages += PagesFor(length, model_.page_size);
  }
}

bool Batch::Admit(const Candidate& candidate, PlanRecord* record) {
  Request* request = candidate.request;
  const KvPages::Prefix& prefix = candidate.prefix;
  const uint64_t bytes = ArenaBytes(*request);
  const std::optional<uint64_t> offset = arena_.Allocate(bytes);
  if (!offset) return false;
  queue_.Admit(request, static_cast<uint32_t>(request->ids.size()) - prefix.num_ids);
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
  views_.push_back({.computed = prefix.num_ids,
                    .length = slot.known_len,
                    .limit = LengthLimit(*request, model_),
                    .num_pages = prefix.num_pages,
                    .prompt_len = request->prompt_len,
                    .rank = RankOf(request->order),
                    .priority = request->priority,
                    .num_cached = prefix.num_pages});
  pages_.TakePrefix(request, prefix);
  if (prefix.tail != nullptr) copies_.push_back({prefix.tail, request});
  for (uint32_t page : request->pages) record->appends.push_back({request->slot, page});
  return true;
}

// Once those who were admitted have their pages.
void Batch::AddCopies(uint64_t step, PlanRecord* record) {
  for (const Copy& copy : copies_) {
    const uint32_t tail = copy.to->num_shared;
    record->copies.push_back({copy.from->pages[tail], copy.to->pages[tail]});
    views_[copy.from->index].last_step = step;  // its pages are named until then
  }
  copies_.clear();
}

void Batch::AddRow(const PlannedRow& planned, uint64_t step, PlanRecord* record) {
  RunningView& view = views_[planned.index];
  Request* request = requests_[planned.index];
  const bool first = view.last_step == 0;
  const uint32_t end = first ? view.length : planned.start + planned.num_tokens;
  for (const uint32_t needed = PagesFor(end, model_.page_size); view.num_pages < needed;
       ++view.num_pages) {
    record->appends.push_back({request->slot, pages_.TakePage(request)});
  }
  uint32_t flags = planned.sample ? uint32_t{shm::kRowSample} : 0;
  if (request->wants_prompt_logprobs && planned.start + 1 < request->prompt_len) {
    flags |= shm::kRowPromptLogprobs;
  }
  record->rows.push_back({request->slot, planned.start, planned.num_tokens, flags});
  view.computed = planned.start + planned.num_tokens;
  pages_.NoteRow(request, step, planned.start, view.computed);
  view.length += planned.sample;
  if (planned.sample) WaitingQueue::Serve(request, 1);
  view.last_step = step;
}

// RunningView::num_shared, where it is needed.
void Batch::CountShared() {
  if (!pages_.shares() || pages_.num_free() >= requests_.size()) return;
  for (size_t i = 0; i < requests_.size(); ++i) {
    views_[i].num_shared = pages_.NumHeldByOthers(*requests_[i]);
  }
}

uint32_t Batch::num_decodes() const {
  uint32_t count = 0;
  for (size_t i = 0; i < views_.size(); ++i) {
    const RunningView& view = views_[i];
    count += requests_[i] != nullptr && !view.AtEnd() && view.length - view.computed == 1;
  }
  return count;
}

void Batch::SetMaxTokens(uint32_t max_tokens) { budget_.max_tokens = max_tokens; }

bool Batch::Compose(uint64_t step, PlanRecord* record) {
  record->Clear();
  Compact();
  SortByClass();
  CollectWaiting();
  CountShared();
  budget_.watermark_pages = fixed_margin_share_ < 0
                                ? margin_.Pages(model_.num_pages)
                                : static_cast<uint32_t>(fixed_margin_share_ * model_.num_pages);
  budget_.headroom_pages = static_cast<uint32_t>(kHeadroom * model_.num_pages);
  PolicyState state{views_,
                    waiting_views_,
                    completed_step_,
                    model_.page_size,
                    pages_.num_free(),
                    pages_.num_quarantined(),
                    static_cast<uint32_t>(free_slots_.size()),
                    lengths_.get()};
  Plan(state, budget_, &plan_);
  for (uint32_t index : plan_.preempted) Preempt(index);
  // Those who are admitted take what they share before anyone takes, and evicts, a page. If no gap
  // in the arena is large enough for one, it and those behind it wait on.
  for (uint32_t i : plan_.admitted) {
    if (!Admit(candidates_[i], record)) break;
  }
  for (const PlannedRow& row : plan_.rows) {
    if (row.index >= requests_.size()) break;
    AddRow(row, step, record);
  }
  AddCopies(step, record);
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
  pages_.CompleteStep(step);
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
    KvPages::Forget(request);
    ++request->num_deaths;
    ++request->num_preemptions;
    if (request->num_deaths >= 2 && request->last_step > completed_step_) {
      request->state = RequestState::kLost;
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
  pages_.Reset(model_.num_pages, model_.page_size);
  arena_ = Arena(arena_memory_.size());
  free_slots_.clear();
  for (uint32_t slot = static_cast<uint32_t>(slots_.size()); slot > 0; --slot) {
    free_slots_.push_back(slot - 1);
  }
  std::fill(slot_owner_.begin(), slot_owner_.end(), nullptr);
}

double Batch::PageUsage() const {
  const uint32_t all = pages_.num_pages();
  return all == 0 ? 0.0 : 1.0 - static_cast<double>(pages_.num_free()) / all;
}

bool Batch::AllFree() const {
  return num_running() == 0 && draining_.empty() && free_slots_.size() == slots_.size() &&
         pages_.num_free() == pages_.num_pages() && arena_.free_bytes() == arena_.total_bytes();
}

}  // namespace penstock::scheduler
