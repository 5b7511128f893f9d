// Batch's invariants.
#include <algorithm>

#include "common/log.h"
#include "scheduler/batch.h"

namespace penstock::scheduler {

void Batch::CheckAccounts() const {
  uint64_t num_pages = pool_.num_free() + tree_.num_pages();
  uint64_t arena_bytes = arena_.free_bytes();
  size_t num_slots = free_slots_.size() + unreleased_.size() + released_slots_.size();
  for (const Request* request : requests_) {
    if (request == nullptr) continue;
    num_pages += request->pages.size() - request->num_shared;
    arena_bytes += Arena::Rounded(request->arena_bytes);
    ++num_slots;
  }
  for (const HeldPages& held : held_pages_) num_pages += held.pages.size() - held.num_shared;
  for (const HeldSlot& held : unreleased_) arena_bytes += Arena::Rounded(held.arena_bytes);
  for (const HeldSlot& held : released_slots_) arena_bytes += Arena::Rounded(held.arena_bytes);
  CHECK(num_pages == pool_.num_pages());
  CHECK(num_slots == slots_.size());
  CHECK(arena_bytes == arena_.total_bytes());
}

void Batch::CheckInvariants() const {
  CheckAccounts();
  tree_.CheckInvariants();
  arena_.CheckInvariants();
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
  size_t num_owned = 0;
  for (size_t i = 0; i < requests_.size(); ++i) {
    const Request* request = requests_[i];
    if (request == nullptr) continue;
    CHECK(request->state == RequestState::kRunning && request->index == i);
    CHECK(request->pages.size() == views_[i].num_pages);
    CHECK(PagesFor(views_[i].computed, model_.page_size) <= views_[i].num_pages);
    CHECK(request->num_shared * model_.page_size <= views_[i].computed);
    CHECK(views_[i].computed <= views_[i].length && views_[i].length <= views_[i].limit);
    CHECK(request->ids.size() <= views_[i].length);
    CHECK(slot_owner_[request->slot] == request);
    hold(request->pages, request->num_shared);
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
    hold(held.pages, held.num_shared);
    num_held += held.num_freed;
  }
  queue_.CheckInvariants();
  for (const Request* request : queue_.All()) {
    CHECK(request->state == RequestState::kWaiting);
    CHECK(request->pages.empty() && request->num_shared == 0);
  }
  CHECK(num_held == num_held_pages_);
  CHECK(std::find(seen.begin(), seen.end(), false) == seen.end());
  for (uint32_t page = 0; page < pool_.num_pages(); ++page) {
    const uint32_t counted =
        prefix_secret_ && tree_.Contains(page) ? tree_.num_references(page) : 0;
    CHECK(num_references[page] == counted);
  }
}

}  // namespace penstock::scheduler
