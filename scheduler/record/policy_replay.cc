#include "scheduler/record/policy_replay.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <utility>

#include "scheduler/record/plan_words.h"

namespace penstock::scheduler {
namespace {

std::optional<KeySecret> SecretOf(const record::Header& header) {
  if (!header.has_secret()) return std::nullopt;
  return KeySecret{header.secret_0(), header.secret_1()};
}

using Owner = std::function<std::string(uint32_t slot)>;

std::string InWords(const shm::PlanSlot& item, const Owner& owner) {
  return fmt::format("slot {} generation {}, {}", item.slot, item.generation, owner(item.slot));
}

std::string InWords(const shm::PlanAppend& item, const Owner& owner) {
  return fmt::format("page {} to slot {}, {}", item.page, item.slot, owner(item.slot));
}

std::string InWords(const shm::PlanCopy& item, const Owner&) {
  return fmt::format("page {} to page {}", item.from, item.to);
}

std::string InWords(const shm::PlanRow& item, const Owner& owner) {
  return fmt::format(
      "slot {}, {}, ids {} to {}{}{}", item.slot, owner(item.slot), item.start,
      item.start + item.num_tokens - 1, (item.flags & shm::kRowSample) != 0 ? ", sampling" : "",
      (item.flags & shm::kRowPromptLogprobs) != 0 ? ", prompt's log-probabilities" : "");
}

// Of two lists, the first items that are not the same, in words.
template <typename T>
std::optional<std::string> Compare(const char* name, const std::vector<T>& recorded,
                                   const std::vector<T>& now, const Owner& owner) {
  const size_t common = std::min(recorded.size(), now.size());
  size_t i = 0;
  while (i < common && std::memcmp(&recorded[i], &now[i], sizeof(T)) == 0) ++i;
  if (i == recorded.size() && i == now.size()) return std::nullopt;
  auto item = [&](const std::vector<T>& items) {
    return i < items.size() ? InWords(items[i], owner) : "none";
  };
  return fmt::format("{} {} differs. Recorded: {} (of {}). Now: {} (of {}).", name, i + 1,
                     item(recorded), recorded.size(), item(now), now.size());
}

}  // namespace

PolicyReplay::PolicyReplay(const record::Header& header, bool check_invariants)
    : slots_(header.num_slots()),
      arena_(header.arena_bytes()),
      check_invariants_(check_invariants),
      batch_(slots_, arena_, SecretOf(header)) {
  absl::flat_hash_map<std::string, double> weights;
  for (const record::TenantWeight& recorded : header.tenant_weights()) {
    weights[recorded.tenant()] = recorded.weight();
  }
  batch_.SetTenantWeights(std::move(weights));
  const int num_known = std::min<int>(header.generations_size(), static_cast<int>(slots_.size()));
  for (int i = 0; i < num_known; ++i) slots_[i].generation = header.generations(i);
}

PolicyReplay::Difference PolicyReplay::Take(const record::Event& event) {
  Difference difference = std::nullopt;
  switch (event.what_case()) {
    case record::Event::kReset:
      RETURN_IF_ERROR(TakeReset(event.reset()));
      break;
    case record::Event::kEnqueue: {
      ASSIGN_OR_RETURN(Request* const request, requests_.Take(event.enqueue()));
      batch_.Enqueue(request);
      break;
    }
    case record::Event::kRemove: {
      ASSIGN_OR_RETURN(Request* const request, requests_.Get(event.remove(), "removes"));
      batch_.Remove(request);
      requests_.Erase(event.remove());
      break;
    }
    case record::Event::kLearnLength: {
      ASSIGN_OR_RETURN(Request* const request, requests_.Get(event.learn_length(), "learns from"));
      batch_.LearnLength(*request);
      break;
    }
    case record::Event::kCompose:
      difference = TakeCompose(event.compose());
      break;
    case record::Event::kResults:
      RETURN_IF_ERROR(TakeResults(event.results()));
      break;
    case record::Event::kCompleteStep:
      RETURN_IF_ERROR(TakeCompleteStep(event.complete_step()));
      break;
    case record::Event::kLoseRanks:
      difference = TakeLoseRanks(event.lose_ranks());
      break;
    default:
      return InvalidArgument("an event of kind {} has no business there",
                             static_cast<int>(event.what_case()));
  }
  if (check_invariants_ && serving_) batch_.CheckInvariants();
  return difference;
}

absl::Status PolicyReplay::TakeReset(const record::Reset& reset) {
  const ModelFacts model{reset.num_pages(), reset.page_size(), reset.max_model_len(),
                         reset.vocab_size(), reset.model_max_num_batched_tokens()};
  if (serving_ || model.num_pages == 0 || model.page_size == 0) {
    return InvalidArgument("epoch {} cannot begin there", reset.epoch());
  }
  batch_.Reset(model, reset.max_num_batched_tokens());
  serving_ = true;
  epoch_ = reset.epoch();
  next_step_ = 1;
  completed_step_ = 0;
  ++num_epochs_;
  return absl::OkStatus();
}

absl::Status PolicyReplay::TakeResults(const record::Results& results) {
  std::vector<RecordedId> rows;
  if (!TakeWords(results.rows(), &rows)) return InvalidArgument("half a row of results");
  for (const RecordedId& row : rows) {
    if (row.slot >= slots_.size()) return InvalidArgument("an id of slot {}", row.slot);
    // What is not the next id, the engine did not take up either: it gave the ranks up.
    if (Request* request = batch_.Find(row.slot, row.generation)) TakeUpRecordedId(row, request);
  }
  return absl::OkStatus();
}

absl::Status PolicyReplay::TakeCompleteStep(uint64_t step) {
  if (step != completed_step_ + 1 || step >= next_step_) {
    return InvalidArgument("step {} is complete after step {} of {}", step, completed_step_,
                           next_step_ - 1);
  }
  batch_.CompleteStep(step);
  completed_step_ = step;
  return absl::OkStatus();
}

PolicyReplay::Difference PolicyReplay::TakeCompose(const record::Compose& compose) {
  if (!serving_ || compose.step() != next_step_ || !TakePlan(compose, &recorded_) ||
      compose.bound_size() != static_cast<int>(recorded_.binds.size())) {
    return InvalidArgument("step {} after step {}", compose.step(), next_step_ - 1);
  }
  batch_.SetMaxTokens(compose.max_tokens());
  batch_.Compose(next_step_, &now_);
  const bool any = !recorded_.empty();
  next_step_ += any;
  num_steps_ += any;
  const Owner owner = [this](uint32_t slot) {
    return slot < slots_.size() ? NameOf(batch_.Find(slot, slots_[slot].generation))
                                : "which there is not";
  };
  std::optional<std::string> difference =
      Compare("release", recorded_.releases, now_.releases, owner);
  if (!difference) difference = Compare("bind", recorded_.binds, now_.binds, owner);
  for (size_t i = 0; !difference && i < now_.binds.size(); ++i) {
    const Request* request = batch_.Find(now_.binds[i].slot, now_.binds[i].generation);
    if (request->serial == compose.bound(static_cast<int>(i))) continue;
    difference = fmt::format("bind {} differs. Recorded: {} to slot {}. Now: {}.", i + 1,
                             NameOf(requests_.Find(compose.bound(static_cast<int>(i)))),
                             now_.binds[i].slot, NameOf(request));
  }
  if (!difference) difference = Compare("page", recorded_.appends, now_.appends, owner);
  if (!difference) difference = Compare("copy", recorded_.copies, now_.copies, owner);
  if (!difference) difference = Compare("row", recorded_.rows, now_.rows, owner);
  if (!difference) return std::nullopt;
  return fmt::format("step {} of epoch {}: {}", compose.step(), epoch_, *difference);
}

PolicyReplay::Difference PolicyReplay::TakeLoseRanks(const record::LoseRanks& lose) {
  std::vector<Request*> failed;
  batch_.LoseRanks(&failed);
  serving_ = false;
  std::vector<uint64_t> serials;
  serials.reserve(failed.size());
  for (const Request* request : failed) serials.push_back(request->serial);
  const std::vector<uint64_t> recorded(lose.failed().begin(), lose.failed().end());
  if (serials == recorded) return std::nullopt;
  return fmt::format("the end of epoch {}: the requests given up differ. Recorded: {}. Now: {}.",
                     epoch_, fmt::join(recorded, ", "), fmt::join(serials, ", "));
}

void PolicyReplay::ComposeOnce() {
  if (serving_) batch_.Compose(next_step_, &now_);
}

}  // namespace penstock::scheduler
