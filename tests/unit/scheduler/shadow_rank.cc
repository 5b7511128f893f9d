#include "tests/unit/scheduler/shadow_rank.h"

#include "common/log.h"

namespace penstock::scheduler {

int32_t IdAt(uint64_t seed, uint32_t position) {
  return static_cast<int32_t>((seed * 7919 + position * 104729) % 1000);
}

std::string SaltOf(uint64_t seed) { return seed / 8 % 3 == 2 ? "other" : ""; }

ShadowRank::ShadowRank(std::span<shm::RequestSlot> slots, std::span<std::byte> arena,
                       const ModelFacts& model)
    : slots_(slots), arena_(arena), model_(model) {}

void ShadowRank::Reset() {
  bound_.assign(slots_.size(), Bound{});
  pages_.assign(model_.num_pages, Page{.contents = std::vector<uint64_t>(model_.page_size),
                                       .filled_step = std::vector<uint64_t>(model_.page_size)});
  completed_step_ = 0;
}

std::vector<Result> ShadowRank::Run(uint64_t step, const PlanRecord& record, uint32_t max_tokens) {
  for (const auto& release : record.releases) {
    CHECK(bound_[release.slot].generation == release.generation);
    for (uint32_t page : bound_[release.slot].pages) --pages_[page].num_users;
    bound_[release.slot] = Bound{};
  }
  for (const auto& bind : record.binds) Bind(bind);
  for (const auto& append : record.appends) {
    bound_[append.slot].pages.push_back(append.page);
    ++pages_[append.page].num_users;
  }
  for (const auto& copy : record.copies) Copy(step, copy);
  std::vector<Result> results;
  uint32_t num_tokens = 0;
  for (const auto& row : record.rows) {
    Bound& bound = bound_[row.slot];
    const uint64_t seed = slots_[row.slot].sampling.seed;
    const uint32_t end = row.start + row.num_tokens;
    CHECK(bound.generation != 0 && row.num_tokens > 0 && end <= bound.ids.size());
    CHECK(end <= bound.pages.size() * model_.page_size);
    if (bound.computed == 0) CheckPrefix(step, bound, row);
    CHECK(row.start == bound.computed || bound.computed == 0);
    Name(step, row, &bound);
    Compute(step, seed, bound, row);
    bound.computed = end;
    num_tokens += row.num_tokens;
    if ((row.flags & shm::kRowSample) == 0) continue;
    CHECK(end == bound.ids.size());
    bound.ids.push_back(IdAt(seed, end));
    results.push_back({row.slot, bound.generation, end, bound.ids.back()});
  }
  CHECK(num_tokens <= max_tokens);
  num_computed += num_tokens;
  return results;
}

void ShadowRank::Bind(const shm::PlanSlot& bind) {
  const shm::RequestSlot& slot = slots_[bind.slot];
  Bound& bound = bound_[bind.slot];
  CHECK(bound.generation == 0 && slot.generation == bind.generation);
  const auto* ids = reinterpret_cast<const int32_t*>(arena_.data() + slot.ids_offset);
  bound = {.generation = bind.generation, .ids = {ids, ids + slot.known_len}};
  for (uint32_t i = slot.prompt_len; i < slot.known_len; ++i) {
    CHECK(ids[i] == IdAt(slot.sampling.seed, i));
  }
  // Its stop ids are where the record says.
  const auto* stops =
      reinterpret_cast<const int32_t*>(arena_.data() + slot.sampling.stop_ids_offset);
  CHECK(slot.sampling.num_stop_ids == 2 && stops[0] == 7 && stops[1] == 8);
}

void ShadowRank::Copy(uint64_t step, const shm::PlanCopy& copy) {
  Page& to = pages_[copy.to];
  Page& from = pages_[copy.from];
  CHECK(to.num_users == 1 && to.named_step <= completed_step_ && to.copied_step != step);
  CHECK(from.num_users >= 1 && from.copied_step != step);
  to.contents = from.contents;
  to.filled_step = from.filled_step;
  to.copied_step = from.named_step = step;
  ++num_copies;
}

// What it takes from others was filled in a step whose end was known: whole pages, and of the one
// that it writes to first a copy.
void ShadowRank::CheckPrefix(uint64_t step, const Bound& bound, const shm::PlanRow& row) const {
  CHECK(row.start < bound.ids.size());
  CHECK(row.start == 0 || (row.flags & shm::kRowPromptLogprobs) == 0);
  for (uint32_t i = 0; i < row.start; ++i) {
    const Page& page = pages_[bound.pages[i / model_.page_size]];
    CHECK(page.filled_step[i % model_.page_size] <= completed_step_);
  }
  CHECK((row.start % model_.page_size != 0) ==
        (pages_[bound.pages[row.start / model_.page_size]].copied_step == step));
}

// Pages that a request has of its own are no longer named by any step that may still run.
void ShadowRank::Name(uint64_t step, const shm::PlanRow& row, Bound* bound) {
  if (bound->num_named == 0) bound->num_named = row.start / model_.page_size;
  for (size_t i = bound->num_named; i < bound->pages.size(); ++i) {
    CHECK(pages_[bound->pages[i]].named_step <= completed_step_);
  }
  bound->num_named = bound->pages.size();
  for (uint32_t page : bound->pages) pages_[page].named_step = step;
}

void ShadowRank::Compute(uint64_t step, uint64_t seed, const Bound& bound,
                         const shm::PlanRow& row) {
  uint64_t content = std::hash<std::string>()(SaltOf(seed));
  for (uint32_t i = 0; i < row.start + row.num_tokens; ++i) {
    content = (content ^ static_cast<uint64_t>(bound.ids[i])) * 0x9e3779b97f4a7c15;
    content ^= content >> 29;
    Page& page = pages_[bound.pages[i / model_.page_size]];
    if (i < row.start) {
      CHECK(page.contents[i % model_.page_size] == content);
      continue;
    }
    CHECK(page.num_users == 1);  // nobody writes to what others read
    page.contents[i % model_.page_size] = content;
    page.filled_step[i % model_.page_size] = step;
  }
}

}  // namespace penstock::scheduler
