#include "scheduler/batch.h"

#include <algorithm>
#include <cstring>

#include "common/log.h"

namespace penstock::scheduler {

Batch::Batch(std::span<shm::RequestSlot> slots, std::span<std::byte> arena)
    : slots_(slots), arena_memory_(arena), arena_(arena.size()), slot_owner_(slots.size()) {
  for (uint32_t slot = static_cast<uint32_t>(slots.size()); slot > 0; --slot) {
    free_slots_.push_back(slot - 1);
  }
}

void Batch::Reset(const ModelFacts& model, uint32_t max_num_batched_tokens) {
  CHECK(AllFree());
  model_ = model;
  pool_ = BlockPool(model.num_pages);
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

void Batch::ReleaseHoldings(Request* request) {
  unreleased_.push_back({0, request->slot, slots_[request->slot].generation, request->arena_offset,
                         request->arena_bytes});
  if (request->last_step > completed_step_) {
    num_held_pages_ += static_cast<uint32_t>(request->pages.size());
    held_pages_.push_back({request->last_step, std::move(request->pages)});
  } else {
    pool_.Free(request->pages);
  }
  request->pages.clear();
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
      ReleaseHoldings(request);
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

void Batch::CollectWaiting(uint32_t max_tokens) {
  waiting_views_.clear();
  uint64_t tokens = 0;
  for (const auto& [order, request] : waiting_) {
    if (waiting_views_.size() == free_slots_.size() || tokens >= max_tokens) return;
    waiting_views_.push_back({static_cast<uint32_t>(request->ids.size()),
                              LengthLimit(*request, model_), request->prompt_len,
                              RankOf(request->order)});
    tokens += request->ids.size();
  }
}

bool Batch::Admit(Request* request, PlanRecord* record) {
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

  std::byte* memory = arena_memory_.data();
  const uint64_t ids_bytes = request->ids.size() * sizeof(int32_t);
  std::memcpy(memory + *offset, request->ids.data(), ids_bytes);
  shm::RequestSlot& slot = slots_[request->slot];
  slot.generation += 1;
  slot.prompt_len = request->prompt_len;
  slot.known_len = static_cast<uint32_t>(request->ids.size());
  slot.ids_offset = *offset;
  slot.sampling =
      PackSampling(request->sampling, memory, *offset + ((ids_bytes + 7) & ~uint64_t{7}));

  record->binds.push_back({request->slot, slot.generation});
  slot_owner_[request->slot] = request;
  requests_.push_back(request);
  views_.push_back({.length = slot.known_len,
                    .limit = LengthLimit(*request, model_),
                    .prompt_len = request->prompt_len,
                    .rank = RankOf(request->order)});
  return true;
}

void Batch::AddRow(const PlannedRow& planned, uint64_t step, PlanRecord* record) {
  RunningView& view = views_[planned.index];
  Request* request = requests_[planned.index];
  const bool first = view.last_step == 0;
  const uint32_t end = first ? view.length : planned.start + planned.num_tokens;
  for (const uint32_t needed = PagesFor(end, model_.page_size); view.num_pages < needed;
       ++view.num_pages) {
    request->pages.push_back(pool_.Allocate());
    record->appends.push_back({request->slot, request->pages.back()});
  }
  uint32_t flags = planned.sample ? uint32_t{shm::kRowSample} : 0;
  if (request->wants_prompt_logprobs && planned.start + 1 < request->prompt_len) {
    flags |= shm::kRowPromptLogprobs;
  }
  record->rows.push_back({request->slot, planned.start, planned.num_tokens, flags});
  view.computed = planned.start + planned.num_tokens;
  view.length += planned.sample;
  view.last_step = step;
}

bool Batch::Compose(uint64_t step, PlanRecord* record) {
  record->Clear();
  Compact();
  CollectWaiting(budget_.max_tokens);
  budget_.watermark_pages = fixed_margin_share_ < 0
                                ? margin_.Pages(model_.num_pages)
                                : static_cast<uint32_t>(fixed_margin_share_ * model_.num_pages);
  PolicyState state{views_,
                    waiting_views_,
                    completed_step_,
                    model_.page_size,
                    pool_.num_free(),
                    num_held_pages_,
                    static_cast<uint32_t>(free_slots_.size()),
                    lengths_.get()};
  Plan(state, budget_, &plan_);
  const size_t num_old = requests_.size();
  for (uint32_t index : plan_.preempted) Preempt(index);
  for (const PlannedRow& row : plan_.rows) {
    // No gap in the arena is large enough: this one and those behind it wait on.
    if (row.index >= num_old && !Admit(waiting_.begin()->second, record)) break;
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
  std::erase_if(held_pages_, [&](const HeldPages& held) {
    if (held.until_step > step) return false;
    num_held_pages_ -= static_cast<uint32_t>(held.pages.size());
    pool_.Free(held.pages);
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
  pool_ = BlockPool(model_.num_pages);
  arena_ = Arena(arena_memory_.size());
  free_slots_.clear();
  for (uint32_t slot = static_cast<uint32_t>(slots_.size()); slot > 0; --slot) {
    free_slots_.push_back(slot - 1);
  }
  std::fill(slot_owner_.begin(), slot_owner_.end(), nullptr);
}

double Batch::PageUsage() const {
  const uint32_t all = pool_.num_pages();
  return all == 0 ? 0.0 : 1.0 - static_cast<double>(pool_.num_free()) / all;
}

bool Batch::AllFree() const {
  return num_running() == 0 && draining_.empty() && free_slots_.size() == slots_.size() &&
         pool_.num_free() == pool_.num_pages() && arena_.free_bytes() == arena_.total_bytes();
}

std::vector<Request*> Batch::Waiting() const {
  std::vector<Request*> waiting;
  for (const auto& [order, request] : waiting_) waiting.push_back(request);
  return waiting;
}

void Batch::CheckInvariants() const {
  std::vector<bool> seen(pool_.num_pages());
  uint32_t num_pages = pool_.num_free();
  auto take = [&](const std::vector<uint32_t>& pages) {
    for (uint32_t page : pages) {
      CHECK(!seen[page]);
      seen[page] = true;
    }
    num_pages += static_cast<uint32_t>(pages.size());
  };
  uint64_t arena_bytes = arena_.free_bytes();
  size_t num_slots = free_slots_.size() + unreleased_.size() + released_slots_.size();
  size_t num_owned = 0;
  for (size_t i = 0; i < requests_.size(); ++i) {
    const Request* request = requests_[i];
    if (request == nullptr) continue;
    CHECK(request->state == RequestState::kRunning && request->index == i);
    CHECK(request->pages.size() == views_[i].num_pages);
    CHECK(PagesFor(views_[i].computed, model_.page_size) <= views_[i].num_pages);
    CHECK(views_[i].computed <= views_[i].length && views_[i].length <= views_[i].limit);
    CHECK(request->ids.size() <= views_[i].length);
    CHECK(slot_owner_[request->slot] == request);
    take(request->pages);
    arena_bytes += Arena::Rounded(request->arena_bytes);
    ++num_slots;
    ++num_owned;
  }
  for (const Request* request : draining_) {
    CHECK(request->state == RequestState::kDraining && request->pages.empty());
    CHECK(slot_owner_[request->slot] == request);
    ++num_owned;
  }
  CHECK(static_cast<size_t>(std::count(slot_owner_.begin(), slot_owner_.end(), nullptr)) ==
        slots_.size() - num_owned);
  uint32_t num_held = 0;
  for (const HeldPages& held : held_pages_) {
    CHECK(held.until_step > completed_step_);
    take(held.pages);
    num_held += static_cast<uint32_t>(held.pages.size());
  }
  for (const HeldSlot& held : unreleased_) arena_bytes += Arena::Rounded(held.arena_bytes);
  for (const HeldSlot& held : released_slots_) arena_bytes += Arena::Rounded(held.arena_bytes);
  for (const auto& [order, request] : waiting_) {
    CHECK(request->state == RequestState::kWaiting && request->order == order);
    CHECK(request->pages.empty());
  }
  CHECK(num_held == num_held_pages_);
  CHECK(num_pages == pool_.num_pages());
  CHECK(num_slots == slots_.size());
  CHECK(arena_bytes == arena_.total_bytes());
  arena_.CheckInvariants();
}

}  // namespace penstock::scheduler
