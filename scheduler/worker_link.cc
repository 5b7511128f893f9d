#include "scheduler/worker_link.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <thread>

#include "common/log.h"

namespace penstock::scheduler {
namespace {

void WritePlanPad(std::byte* at, uint32_t bytes) {
  auto* pad = reinterpret_cast<shm::PlanHeader*>(at);
  pad->bytes = bytes;
  pad->kind = shm::PlanKind::kPad;
}

template <typename T>
std::byte* Append(std::byte* to, const std::vector<T>& items) {
  const size_t bytes = items.size() * sizeof(T);
  if (bytes > 0) std::memcpy(to, items.data(), bytes);
  return to + bytes;
}

}  // namespace

shm::Geometry WorkerLink::MakeGeometry(uint32_t num_ranks, uint32_t num_slots, uint64_t arena_bytes,
                                       uint32_t max_num_batched_tokens) {
  shm::Geometry geometry;
  geometry.num_ranks = num_ranks;
  geometry.num_slots = num_slots;
  geometry.arena_bytes = arena_bytes;
  geometry.collective_bytes = num_ranks > 1 ? 4 << 20 : 0;
  return SizeRings(geometry, max_num_batched_tokens);
}

shm::Geometry WorkerLink::SizeRings(shm::Geometry geometry, uint32_t max_num_batched_tokens) {
  // Two steps may be in flight while a third is written, with pads: eight times the largest record.
  // At worst each token of a step takes a page, and yields an id with all its log-probabilities.
  const uint64_t slots = geometry.num_slots;
  const uint64_t plan =
      sizeof(shm::PlanHeader) +
      slots * (2 * sizeof(shm::PlanSlot) + sizeof(shm::PlanCopy) + sizeof(shm::PlanRow)) +
      (slots + max_num_batched_tokens) * sizeof(shm::PlanAppend);
  const uint64_t result =
      sizeof(shm::ResultHeader) +
      (slots + max_num_batched_tokens) *
          (sizeof(shm::ResultRow) + shm::kMaxTopLogprobs * sizeof(shm::ResultTop));
  geometry.plan_ring_bytes = std::max(geometry.plan_ring_bytes, std::bit_ceil(8 * plan));
  geometry.result_ring_bytes = std::max(geometry.result_ring_bytes, std::bit_ceil(8 * result));
  return geometry;
}

WorkerLink::WorkerLink(std::shared_ptr<shm::Segment> segment)
    : segment_(std::move(segment)),
      plans_(segment_->plan_ring(), &segment_->header().plan_tail),
      ranks_(segment_->geometry().num_ranks) {
  for (size_t i = 0; i < ranks_.size(); ++i) {
    shm::RankArea& area = segment_->rank(static_cast<int>(i));
    ranks_[i].results = std::make_unique<shm::RingReader>(
        segment_->result_ring(static_cast<int>(i)), &area.result_tail, area.result_cursor.load());
  }
  EndEpoch(segment_->adopted() ? "took over a dead scheduler's segment" : "new segment");
}

void WorkerLink::EndEpoch(const std::string& reason) {
  state_ = State::kDown;
  declared_lost_.clear();
  lost_reason_ = reason;
  epoch_ = segment_->header().epoch.load() + 1;
  segment_->header().epoch.store(epoch_, std::memory_order_seq_cst);
  // Ranks that wait for a plan or for each other look at the epoch when they wake.
  segment_->header().plan_event.Notify();
  for (size_t i = 0; i < ranks_.size(); ++i) {
    ranks_[i].next = nullptr;
    segment_->rank(static_cast<int>(i)).collective_event.Notify();
  }
  spdlog::info("msg=\"epoch begins\" epoch={} reason=\"{}\"", epoch_, reason);
}

void WorkerLink::DeclareLost(std::string reason) {
  if (declared_lost_.empty()) declared_lost_ = std::move(reason);
}

absl::Status WorkerLink::GroupReady(ModelFacts* model) const {
  for (size_t i = 0; i < ranks_.size(); ++i) {
    const int index = static_cast<int>(i);
    const shm::RankArea& area = segment_->rank(index);
    if (!segment_->RankIsAlive(index)) {
      return Unavailable("rank {} is not running", i);
    }
    switch (static_cast<shm::RankState>(area.state.load(std::memory_order_acquire))) {
      case shm::RankState::kAbsent:
        return Unavailable("rank {} starts", i);
      case shm::RankState::kLoading:
        if (const float loaded = area.load_progress.load(); loaded < 1) {
          return Unavailable("rank {} loads weights, {:.0f}%", i, 100 * loaded);
        }
        return Unavailable("rank {} warms up", i);
      case shm::RankState::kFailed:
        return Unavailable("rank {} failed: {}", i,
                           std::string(area.error, strnlen(area.error, sizeof(area.error))));
      case shm::RankState::kReady:
        break;
    }
    const ModelFacts facts{area.num_pages, area.page_size, area.max_model_len, area.vocab_size,
                           area.max_num_batched_tokens};
    if (facts.num_pages == 0 || facts.page_size == 0 || facts.vocab_size == 0 ||
        facts.max_model_len < 2 || facts.max_num_batched_tokens == 0) {
      return Unavailable(
          "rank {} reports {} pages of {} tokens, vocabulary {}, max_model_len {}, {} tokens a "
          "step: none may be 0",
          i, facts.num_pages, facts.page_size, facts.vocab_size, facts.max_model_len,
          facts.max_num_batched_tokens);
    }
    const uint32_t num_pages =
        i == 0 ? facts.num_pages : std::min(model->num_pages, facts.num_pages);
    if (i == 0) *model = facts;
    model->num_pages = num_pages;  // memory may differ between devices: use what all have
    if (facts.page_size != model->page_size || facts.max_model_len != model->max_model_len ||
        facts.vocab_size != model->vocab_size ||
        facts.max_num_batched_tokens != model->max_num_batched_tokens) {
      return Unavailable("ranks 0 and {} loaded different models: start all with the same flags",
                         i);
    }
  }
  return absl::OkStatus();
}

absl::Status WorkerLink::GroupIntact() const {
  if (!declared_lost_.empty()) return Aborted("{}", declared_lost_);
  for (size_t i = 0; i < ranks_.size(); ++i) {
    const shm::RankArea& area = segment_->rank(static_cast<int>(i));
    if (ranks_[i].watch->dead.load(std::memory_order_acquire)) return Aborted("rank {} died", i);
    if (area.incarnation.load(std::memory_order_acquire) != ranks_[i].incarnation) {
      return Aborted("rank {} was started anew", i);
    }
    if (area.state.load(std::memory_order_acquire) !=
        static_cast<uint32_t>(shm::RankState::kReady)) {
      return Aborted("rank {} is not ready any more", i);
    }
  }
  return absl::OkStatus();
}

std::string WorkerLink::NotReadyReason() const {
  if (state_ == State::kServing) return "";
  ModelFacts facts;
  const absl::Status ready = GroupReady(&facts);
  return ready.ok() ? "ranks are being reset" : Message(ready);
}

void WorkerLink::WatchRank(int index) {
  Rank& rank = ranks_[index];
  const uint64_t incarnation = segment_->rank(index).incarnation.load();
  if (rank.watch && !rank.watch->dead && rank.incarnation == incarnation) return;
  rank.incarnation = incarnation;
  rank.watch = std::make_shared<Watch>();
  rank.watch->segment = segment_;
  rank.watch->rank = index;
  // Detached: the wait in the kernel ends with the rank or with this process. The thread holds all
  // that it touches.
  std::thread([watch = rank.watch] {
    watch->segment->WaitForRankDeath(watch->rank);
    watch->dead.store(true, std::memory_order_release);
    watch->segment->header().scheduler_event.Notify();
  }).detach();
}

void WorkerLink::BeginReset() {
  std::byte* record = plans_.Reserve(sizeof(shm::PlanHeader), MinPlanCursor(), WritePlanPad);
  // A rank that has only just been started still shows its predecessor's cursor: it will wake us.
  if (record == nullptr) return;
  for (size_t i = 0; i < ranks_.size(); ++i) WatchRank(static_cast<int>(i));
  const shm::PlanHeader header{
      .bytes = sizeof(shm::PlanHeader), .kind = shm::PlanKind::kReset, .epoch = epoch_};
  std::memcpy(record, &header, sizeof(header));
  plans_.Publish();
  segment_->header().plan_event.Notify();
  state_ = State::kResetting;
}

WorkerLink::Change WorkerLink::Poll() {
  if (state_ == State::kDown) {
    if (!GroupReady(&model_).ok()) return Change::kNone;
    BeginReset();
    if (state_ == State::kDown) return Change::kNone;
  }
  if (const absl::Status intact = GroupIntact(); !intact.ok()) {
    spdlog::error("msg=\"lost the ranks\" epoch={} reason=\"{}\"", epoch_, Message(intact));
    EndEpoch(Message(intact));
    return Change::kLost;
  }
  if (state_ == State::kResetting) {
    for (size_t i = 0; i < ranks_.size(); ++i) {
      if (segment_->rank(static_cast<int>(i)).acked_epoch.load(std::memory_order_acquire) !=
          epoch_) {
        return Change::kNone;
      }
    }
    state_ = State::kServing;
    return Change::kServing;
  }
  return Change::kNone;
}

uint64_t WorkerLink::MinPlanCursor() const {
  uint64_t least = UINT64_MAX;
  for (size_t i = 0; i < ranks_.size(); ++i) {
    least = std::min(
        least, segment_->rank(static_cast<int>(i)).plan_cursor.load(std::memory_order_acquire));
  }
  return least;
}

void WorkerLink::Publish(uint64_t step, const PlanRecord& record) {
  const shm::PlanHeader header{
      .bytes = static_cast<uint32_t>(
          sizeof(shm::PlanHeader) + record.releases.size() * sizeof(shm::PlanSlot) +
          record.binds.size() * sizeof(shm::PlanSlot) +
          record.appends.size() * sizeof(shm::PlanAppend) +
          record.copies.size() * sizeof(shm::PlanCopy) + record.rows.size() * sizeof(shm::PlanRow)),
      .kind = shm::PlanKind::kStep,
      .epoch = epoch_,
      .step = step,
      .num_releases = static_cast<uint32_t>(record.releases.size()),
      .num_binds = static_cast<uint32_t>(record.binds.size()),
      .num_appends = static_cast<uint32_t>(record.appends.size()),
      .num_copies = static_cast<uint32_t>(record.copies.size()),
      .num_rows = static_cast<uint32_t>(record.rows.size()),
      .reserved = 0};
  std::byte* to = plans_.Reserve(header.bytes, MinPlanCursor(), WritePlanPad);
  if (to == nullptr) {
    // The ring holds all that can be in flight, so a rank has completed steps without moving on.
    DeclareLost("a rank does not free the plan ring");
    return;
  }
  std::memcpy(to, &header, sizeof(header));
  to = Append(to + sizeof(header), record.releases);
  to = Append(to, record.binds);
  to = Append(to, record.appends);
  to = Append(to, record.copies);
  Append(to, record.rows);
  plans_.Publish();
  segment_->header().plan_event.Notify();
}

const shm::ResultHeader* WorkerLink::NextResult(uint64_t step) {
  bool all = state_ == State::kServing;
  for (Rank& rank : ranks_) {
    while (rank.next == nullptr) {
      const auto* record = reinterpret_cast<const shm::ResultHeader*>(rank.results->Next());
      if (record == nullptr) break;
      if (record->num_rows != shm::kPadResult && record->epoch == epoch_) rank.next = record;
    }
    all = all && rank.next != nullptr;
  }
  if (!all || !declared_lost_.empty()) return nullptr;
  for (const Rank& rank : ranks_) {
    if (rank.next->step != step) {
      DeclareLost(fmt::format("a rank reports step {} instead of {}", rank.next->step, step));
      return nullptr;
    }
    if (rank.next->ids_hash != ranks_[0].next->ids_hash) {
      DeclareLost(fmt::format("ranks 0 and {} sampled different ids in step {}",
                              &rank - ranks_.data(), step));
      return nullptr;
    }
  }
  return ranks_[0].next;
}

void WorkerLink::Consume() {
  for (size_t i = 0; i < ranks_.size(); ++i) {
    ranks_[i].next = nullptr;
    segment_->rank(static_cast<int>(i))
        .result_cursor.store(ranks_[i].results->cursor(), std::memory_order_release);
  }
}

}  // namespace penstock::scheduler
