#include "scheduler/record/worker_replay.h"

#include <algorithm>
#include <span>
#include <utility>

#include "common/log.h"

namespace penstock::scheduler {
namespace {

constexpr int64_t kLookEveryNs = 100'000'000;  // at ranks that start: their end wakes nobody

absl::Status Differs(const char* what, uint32_t recorded, uint32_t now, const char* advice) {
  return FailedPrecondition("the recording is of another model: {} {}, here {}: {}", what, recorded,
                            now, advice);
}

// The sampled ids of a step.
std::vector<RecordedId> IdsOf(const shm::ResultHeader& step) {
  std::vector<RecordedId> ids;
  const auto* at = reinterpret_cast<const std::byte*>(&step) + sizeof(step);
  const std::byte* end = reinterpret_cast<const std::byte*>(&step) + step.bytes;
  for (uint32_t i = 0; i < step.num_rows && at + sizeof(shm::ResultRow) <= end; ++i) {
    const auto& row = *reinterpret_cast<const shm::ResultRow*>(at);
    at += sizeof(row) + row.num_top * sizeof(shm::ResultTop);
    if (row.is_prompt != 0) continue;
    ids.push_back({row.slot, row.generation, static_cast<uint32_t>(row.token_id),
                   static_cast<uint32_t>(row.position)});
  }
  return ids;
}

}  // namespace

shm::Geometry WorkerReplay::GeometryFor(const record::Header& header, uint32_t num_ranks) {
  return WorkerLink::MakeGeometry(num_ranks, header.num_slots(), header.arena_bytes(),
                                  header.max_num_batched_tokens());
}

WorkerReplay::WorkerReplay(std::shared_ptr<shm::Segment> segment, Options options)
    : segment_(std::move(segment)),
      options_(std::move(options)),
      link_(segment_),
      slots_(segment_->geometry().num_slots),
      arena_(segment_->arena().size()) {}

WorkerReplay::Difference WorkerReplay::Take(const record::Event& event) {
  switch (event.what_case()) {
    case record::Event::kReset:
      RETURN_IF_ERROR(TakeReset(event.reset()));
      return std::nullopt;
    case record::Event::kEnqueue:
      RETURN_IF_ERROR(requests_.Take(event.enqueue()).status());
      return std::nullopt;
    case record::Event::kRemove:
      requests_.Erase(event.remove());
      return std::nullopt;
    case record::Event::kCompose:
      RETURN_IF_ERROR(TakeCompose(event.compose()));
      return std::nullopt;
    case record::Event::kResults:
      RETURN_IF_ERROR(TakeResults(event.results()));
      return std::nullopt;
    case record::Event::kCompleteStep:
      return TakeCompleteStep(event.complete_step());
    case record::Event::kLoseRanks:
      TakeLoseRanks();
      return std::nullopt;
    default:  // what only the policy needs
      return std::nullopt;
  }
}

absl::Status WorkerReplay::TakeReset(const record::Reset& reset) {
  if (link_.state() == WorkerLink::State::kServing) {
    return InvalidArgument("epoch {} begins before epoch {} has ended", reset.epoch(), epoch_);
  }
  const int64_t deadline = shm::MonotonicNs() + options_.start_timeout_ns;
  shm::Event& event = segment_->header().scheduler_event;
  while (link_.state() != WorkerLink::State::kServing) {
    const uint32_t seen = event.Current();
    while (link_.Poll() != WorkerLink::Change::kNone) {
    }
    if (link_.state() == WorkerLink::State::kServing) break;
    const std::string reason = link_.NotReadyReason();
    if (options_.on_wait) RETURN_IF_ERROR(options_.on_wait(reason));
    const int64_t now = shm::MonotonicNs();
    if (now > deadline) {
      return DeadlineExceeded("the ranks are not ready after {} s: {}",
                              options_.start_timeout_ns / 1'000'000'000, reason);
    }
    event.Wait(seen, now + kLookEveryNs);
  }
  epoch_ = reset.epoch();
  published_step_ = completed_step_ = 0;
  ++num_epochs_;
  return CheckModel(reset);
}

absl::Status WorkerReplay::CheckModel(const record::Reset& reset) const {
  const ModelFacts& now = link_.model();
  if (now.vocab_size != reset.vocab_size()) {
    return Differs("its vocabulary has", reset.vocab_size(), now.vocab_size,
                   "give the --model that was recorded");
  }
  if (now.page_size != reset.page_size()) {
    return Differs("tokens in a KV page", reset.page_size(), now.page_size,
                   "give --block-size as it was recorded");
  }
  if (now.num_pages < reset.num_pages()) {
    return Differs("KV pages", reset.num_pages(), now.num_pages,
                   "give --num-kv-pages as it was recorded");
  }
  if (now.max_model_len < reset.max_model_len()) {
    return Differs("longest context", reset.max_model_len(), now.max_model_len,
                   "give --max-model-len as it was recorded");
  }
  if (now.max_num_batched_tokens < reset.max_num_batched_tokens()) {
    return Differs("tokens a step", reset.max_num_batched_tokens(), now.max_num_batched_tokens,
                   "give --max-num-batched-tokens as it was recorded");
  }
  return absl::OkStatus();
}

absl::Status WorkerReplay::TakeCompose(const record::Compose& compose) {
  if (!TakePlan(compose, &plan_) || compose.step() != published_step_ + 1 ||
      compose.bound_size() != static_cast<int>(plan_.binds.size())) {
    return InvalidArgument("step {} after step {}", compose.step(), published_step_);
  }
  if (plan_.empty()) return absl::OkStatus();
  for (const shm::PlanSlot& release : plan_.releases) {
    if (release.slot >= slots_.size()) return InvalidArgument("slot {} is released", release.slot);
    const Slot& slot = slots_[release.slot];
    releases_.push_back({compose.step(), slot.arena_offset, slot.arena_bytes});
  }
  for (size_t i = 0; i < plan_.binds.size(); ++i) {
    RETURN_IF_ERROR(Bind(plan_.binds[i], compose.bound(static_cast<int>(i))));
  }
  // That it is not serving any more comes out where the step's results are waited for.
  if (link_.state() == WorkerLink::State::kServing) link_.Publish(compose.step(), plan_);
  published_step_ = compose.step();
  ++num_steps_;
  return absl::OkStatus();
}

absl::Status WorkerReplay::Bind(const shm::PlanSlot& bind, uint64_t serial) {
  if (bind.slot >= slots_.size()) return InvalidArgument("slot {} is bound", bind.slot);
  ASSIGN_OR_RETURN(Request* const request, requests_.Get(serial, "binds a slot to"));
  const uint64_t bytes = ArenaBytes(*request);
  const std::optional<uint64_t> offset = arena_.Allocate(bytes);
  if (!offset) return InvalidArgument("{} does not fit into the arena", NameOf(request));
  shm::RequestSlot& slot = segment_->slot(bind.slot);
  slot.generation = bind.generation;
  WriteSlot(*request, segment_->arena().data(), *offset, &slot);
  slots_[bind.slot] = {bind.generation, serial, NameOf(request), *offset, bytes};
  return absl::OkStatus();
}

absl::Status WorkerReplay::TakeResults(const record::Results& results) {
  std::vector<RecordedId> rows;
  if (!TakeWords(results.rows(), &rows)) return InvalidArgument("half a row of results");
  for (const RecordedId& row : rows) {
    if (row.slot >= slots_.size()) return InvalidArgument("an id of slot {}", row.slot);
    expected_.push_back(row);
    if (slots_[row.slot].generation != row.generation) continue;
    Request* request = requests_.Find(slots_[row.slot].serial);
    if (request != nullptr) TakeUpRecordedId(row, request);
  }
  return absl::OkStatus();
}

// Null if the ranks were lost (*lost says why) or the step takes too long.
const shm::ResultHeader* WorkerReplay::WaitForResult(uint64_t step, std::string* lost) {
  shm::Event& event = segment_->header().scheduler_event;
  const int64_t deadline = shm::MonotonicNs() + options_.step_timeout_ns;
  while (true) {
    const uint32_t seen = event.Current();
    if (const shm::ResultHeader* result = link_.NextResult(step)) return result;
    if (link_.state() != WorkerLink::State::kServing || link_.Poll() == WorkerLink::Change::kLost) {
      *lost =
          fmt::format("the ranks were lost ({}; {})", link_.lost_reason(), link_.NotReadyReason());
      return nullptr;
    }
    if (!event.Wait(seen, deadline)) {
      *lost = fmt::format("the ranks have not completed it after {} s",
                          options_.step_timeout_ns / 1'000'000'000);
      return nullptr;
    }
  }
}

std::string WorkerReplay::NameOfSlot(uint32_t slot, uint32_t generation) const {
  const bool known = slot < slots_.size() && slots_[slot].generation == generation;
  return known ? slots_[slot].name : fmt::format("slot {} generation {}", slot, generation);
}

WorkerReplay::Difference WorkerReplay::CompareIds(const shm::ResultHeader& now) const {
  const std::vector<RecordedId> ids = IdsOf(now);
  for (size_t i = 0; i < std::max(ids.size(), expected_.size()); ++i) {
    auto where = [&](const RecordedId& id) {
      return fmt::format("{}, position {}", NameOfSlot(id.slot, id.generation), id.position);
    };
    const std::string begin = fmt::format("step {} of epoch {}: ", now.step, epoch_);
    if (i >= ids.size()) return begin + where(expected_[i]) + ": recorded an id, now none";
    if (i >= expected_.size()) return begin + where(ids[i]) + ": recorded no id, now one";
    const RecordedId &old_id = expected_[i], &new_id = ids[i];
    if (old_id.slot != new_id.slot || old_id.generation != new_id.generation ||
        old_id.position != new_id.position) {
      return fmt::format("{}id {} of it differs. Recorded: of {}. Now: of {}.", begin, i + 1,
                         where(old_id), where(new_id));
    }
    if (old_id.id == new_id.id) continue;
    return fmt::format("{}{}: the id differs. Recorded: {}. Now: {}.", begin, where(old_id),
                       old_id.id, new_id.id);
  }
  return std::nullopt;
}

WorkerReplay::Difference WorkerReplay::TakeCompleteStep(uint64_t step) {
  if (step != completed_step_ + 1 || step > published_step_) {
    return InvalidArgument("step {} is complete after step {} of {}", step, completed_step_,
                           published_step_);
  }
  std::string lost;
  const shm::ResultHeader* result = WaitForResult(step, &lost);
  if (result == nullptr) {
    return fmt::format("step {} of epoch {}: {}, though they completed it when it was recorded",
                       step, epoch_, lost);
  }
  Difference difference = CompareIds(*result);
  link_.Consume();
  completed_step_ = step;
  if (!difference->has_value()) num_ids_ += expected_.size();
  expected_.clear();
  while (!releases_.empty() && releases_.front().step <= step) {
    arena_.Free(releases_.front().arena_offset, releases_.front().arena_bytes);
    releases_.pop_front();
  }
  return difference;
}

void WorkerReplay::TakeLoseRanks() {
  Finish();
  if (link_.state() == WorkerLink::State::kServing) link_.Abandon("the recording's epoch ends");
  std::fill(slots_.begin(), slots_.end(), Slot{});
  releases_.clear();
  expected_.clear();
  arena_ = Arena(segment_->arena().size());
  published_step_ = completed_step_ = 0;
}

void WorkerReplay::Finish() {
  // What was in flight when the recorded epoch ended may be why it did: it must be let run.
  for (; completed_step_ < published_step_; ++completed_step_) {
    std::string lost;
    if (WaitForResult(completed_step_ + 1, &lost) == nullptr) {
      losses_.push_back(fmt::format("step {} of epoch {}: {}", completed_step_ + 1, epoch_, lost));
      completed_step_ = published_step_;
      break;
    }
    link_.Consume();
  }
}

}  // namespace penstock::scheduler
