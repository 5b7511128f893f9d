// Batch's invariants.
#include <algorithm>

#include "common/log.h"
#include "scheduler/batch.h"

namespace penstock::scheduler {

void Batch::CheckAccounts() const {
  pages_.CheckAccounts(requests_);
  uint64_t arena_bytes = arena_.free_bytes();
  size_t num_slots = free_slots_.size() + unreleased_.size() + released_slots_.size();
  for (const Request* request : requests_) {
    if (request == nullptr) continue;
    arena_bytes += Arena::Rounded(request->arena_bytes);
    ++num_slots;
  }
  for (const HeldSlot& held : unreleased_) arena_bytes += Arena::Rounded(held.arena_bytes);
  for (const HeldSlot& held : released_slots_) arena_bytes += Arena::Rounded(held.arena_bytes);
  CHECK(num_slots == slots_.size());
  CHECK(arena_bytes == arena_.total_bytes());
}

void Batch::CheckInvariants() const {
  CheckAccounts();
  pages_.CheckInvariants(requests_);
  arena_.CheckInvariants();
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
    ++num_owned;
  }
  for (const Request* request : draining_) {
    CHECK(request->state == RequestState::kDraining && request->pages.empty());
    CHECK(slot_owner_[request->slot] == request);
    ++num_owned;
  }
  CHECK(static_cast<size_t>(std::count(slot_owner_.begin(), slot_owner_.end(), nullptr)) ==
        slots_.size() - num_owned);
  queue_.CheckInvariants();
  for (const Request* request : queue_.All()) {
    CHECK(request->state == RequestState::kWaiting);
    CHECK(request->pages.empty() && request->num_shared == 0);
  }
}

}  // namespace penstock::scheduler
