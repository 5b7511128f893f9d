// Plan records and what a recording has of them: the words of the structs of common/shm/layout.h.
#pragma once

#include <google/protobuf/repeated_field.h>

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "proto/record.pb.h"
#include "scheduler/plan_record.h"

namespace penstock::scheduler {

using Words = google::protobuf::RepeatedField<uint32_t>;

template <typename T>
inline constexpr int kWordsOf = sizeof(T) / sizeof(uint32_t);

template <typename T>
void PutWords(const std::vector<T>& items, Words* words) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) % sizeof(uint32_t) == 0);
  words->Resize(static_cast<int>(items.size()) * kWordsOf<T>, 0);
  if (!items.empty()) std::memcpy(words->mutable_data(), items.data(), items.size() * sizeof(T));
}

// False if the words are not whole structs.
template <typename T>
bool TakeWords(const Words& words, std::vector<T>* items) {
  if (words.size() % kWordsOf<T> != 0) return false;
  items->resize(words.size() / kWordsOf<T>);
  if (!items->empty()) std::memcpy(items->data(), words.data(), items->size() * sizeof(T));
  return true;
}

// All that a plan is made of. (The assertion fails when something is added: record that too.)
static_assert(sizeof(PlanRecord) == 5 * sizeof(std::vector<shm::PlanRow>));
inline void PutPlan(const PlanRecord& plan, record::Compose* recorded) {
  PutWords(plan.releases, recorded->mutable_releases());
  PutWords(plan.binds, recorded->mutable_binds());
  PutWords(plan.appends, recorded->mutable_appends());
  PutWords(plan.copies, recorded->mutable_copies());
  PutWords(plan.rows, recorded->mutable_rows());
}
inline bool TakePlan(const record::Compose& recorded, PlanRecord* plan) {
  return TakeWords(recorded.releases(), &plan->releases) &&
         TakeWords(recorded.binds(), &plan->binds) &&
         TakeWords(recorded.appends(), &plan->appends) &&
         TakeWords(recorded.copies(), &plan->copies) && TakeWords(recorded.rows(), &plan->rows);
}

// A row of record::Results.
struct RecordedId {
  uint32_t slot, generation, id, position;
};

}  // namespace penstock::scheduler
