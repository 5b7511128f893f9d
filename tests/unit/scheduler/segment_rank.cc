#include "tests/unit/scheduler/segment_rank.h"

#include <cstring>
#include <random>
#include <span>

#include "common/log.h"

namespace penstock::scheduler {
namespace {

void WritePad(std::byte* at, uint32_t bytes) {
  const uint32_t pad[2] = {bytes, shm::kPadResult};
  std::memcpy(at, pad, sizeof(pad));
}

template <typename T>
std::span<const T> Take(const std::byte** at, uint32_t count) {
  const auto* items = reinterpret_cast<const T*>(*at);
  *at += count * sizeof(T);
  return {items, count};
}

}  // namespace

SegmentRank::SegmentRank(const shm::Segment* mapping, const std::string& engine_id, int index)
    : presence_(
          shm::Segment::Attach(engine_id, index, shm::MonotonicNs() + 10'000'000'000).value()),
      segment_(mapping != nullptr ? *mapping : *presence_),
      index_(index),
      area_(segment_.rank(index)),
      plans_(segment_.plan_ring(), &segment_.header().plan_tail,
             segment_.header().plan_tail.load()),
      results_(segment_.result_ring(index), &area_.result_tail),
      slots_(segment_.geometry().num_slots) {
  area_.state.store(static_cast<uint32_t>(shm::RankState::kLoading));
  area_.acked_epoch.store(0);
  area_.plan_cursor.store(plans_.cursor());
  area_.num_pages.store(512);
  area_.page_size.store(16);
  area_.max_model_len.store(1024);
  area_.vocab_size.store(kVocabulary);
  area_.max_num_batched_tokens.store(256);
  area_.incarnation.store(uint64_t{std::random_device()()} << 1 | 1);
  SetState(shm::RankState::kLoading);
}

void SegmentRank::SetState(shm::RankState state) {
  area_.state.store(static_cast<uint32_t>(state), std::memory_order_release);
  segment_.header().scheduler_event.Notify();
}

bool SegmentRank::Step() {
  const std::byte* record = nullptr;
  const auto is_pad = [](const std::byte* at) {
    return reinterpret_cast<const shm::PlanHeader*>(at)->kind == shm::PlanKind::kPad;
  };
  do {
    record = plans_.Next();
    if (record == nullptr) return false;
  } while (is_pad(record));
  const auto& header = *reinterpret_cast<const shm::PlanHeader*>(record);
  if (header.kind == shm::PlanKind::kReset) {
    slots_.assign(slots_.size(), Slot{});
    area_.acked_epoch.store(header.epoch, std::memory_order_release);
  } else if (header.kind == shm::PlanKind::kStep) {
    RunStep(header, record + sizeof(header));
  }
  area_.plan_cursor.store(plans_.cursor(), std::memory_order_release);
  segment_.header().scheduler_event.Notify();
  return true;
}

void SegmentRank::RunStep(const shm::PlanHeader& header, const std::byte* items) {
  for (const auto& release : Take<shm::PlanSlot>(&items, header.num_releases)) {
    CHECK(slots_[release.slot].generation == release.generation);
    slots_[release.slot] = Slot{};
  }
  for (const auto& bind : Take<shm::PlanSlot>(&items, header.num_binds)) {
    const shm::RequestSlot& request = segment_.slot(bind.slot);
    CHECK(slots_[bind.slot].generation == 0 && request.generation == bind.generation);
    const auto* ids =
        reinterpret_cast<const int32_t*>(segment_.arena().data() + request.ids_offset);
    slots_[bind.slot] = {bind.generation, {ids, ids + request.known_len}};
  }
  Take<shm::PlanAppend>(&items, header.num_appends);
  Take<shm::PlanCopy>(&items, header.num_copies);
  std::vector<shm::ResultRow> rows;
  uint64_t hash = hash_noise;
  for (const auto& row : Take<shm::PlanRow>(&items, header.num_rows)) {
    if ((row.flags & shm::kRowSample) == 0) continue;
    Slot& slot = slots_[row.slot];
    const auto position = static_cast<uint32_t>(slot.ids.size());
    CHECK(row.start + row.num_tokens == position);
    slot.ids.push_back(IdAt(segment_.slot(row.slot).sampling.seed, position));
    hash = hash * 31 + static_cast<uint64_t>(slot.ids.back());
    rows.push_back({.slot = row.slot + slot_noise,
                    .generation = slot.generation,
                    .token_id = slot.ids.back(),
                    .position = static_cast<int32_t>(position)});
  }
  if (index_ != 0) rows.clear();
  const shm::ResultHeader result{
      .bytes = static_cast<uint32_t>(sizeof(result) + rows.size() * sizeof(shm::ResultRow)),
      .num_rows = static_cast<uint32_t>(rows.size()),
      .epoch = header.epoch,
      .step = header.step + step_noise,
      .ids_hash = hash};
  std::byte* to = results_.Reserve(result.bytes, area_.result_cursor.load(), WritePad);
  CHECK(to != nullptr);
  std::memcpy(to, &result, sizeof(result));
  if (!rows.empty()) {
    std::memcpy(to + sizeof(result), rows.data(), rows.size() * sizeof(shm::ResultRow));
  }
  results_.Publish();
}

void SegmentRank::Run() {
  while (!stop_.load()) {
    const uint32_t seen = segment_.header().plan_event.Current();
    if (Step() || stop_.load()) continue;
    segment_.header().plan_event.Wait(seen, shm::kNoDeadline);
  }
}

void SegmentRank::Stop() {
  stop_ = true;
  segment_.header().plan_event.Notify();
}

}  // namespace penstock::scheduler
