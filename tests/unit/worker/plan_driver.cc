#include "tests/unit/worker/plan_driver.h"

#include <algorithm>
#include <cstring>
#include <queue>

#include "common/log.h"
#include "common/status.h"

namespace penstock::worker {

shm::SamplingRecord GreedySampling() {
  shm::SamplingRecord sampling = {};
  sampling.top_p = 1.0f;
  sampling.repetition_penalty = 1.0f;
  sampling.num_top_logprobs = -1;
  sampling.num_prompt_logprobs = -1;
  return sampling;
}

absl::StatusOr<std::unique_ptr<PlanDriver>> PlanDriver::Create(const std::string& engine_id,
                                                               const shm::Geometry& geometry) {
  std::unique_ptr<PlanDriver> driver(new PlanDriver());
  ASSIGN_OR_RETURN(driver->segment_, shm::Segment::CreateOrAdopt(engine_id, geometry));
  driver->engine_id_ = engine_id;
  shm::SegmentHeader& header = driver->segment_->header();
  driver->plans_ =
      std::make_unique<shm::RingWriter>(driver->segment_->plan_ring(), &header.plan_tail);
  driver->epoch_ = header.epoch.load();
  for (uint32_t rank = 0; rank < geometry.num_ranks; ++rank) {
    shm::RankArea& area = driver->segment_->rank(static_cast<int>(rank));
    driver->results_.emplace_back(driver->segment_->result_ring(static_cast<int>(rank)),
                                  &area.result_tail, area.result_cursor.load());
  }
  return driver;
}

PlanDriver::~PlanDriver() { (void)shm::Segment::Remove(engine_id_); }

absl::Status PlanDriver::WaitFor(const std::function<bool()>& condition, int64_t timeout_ms,
                                 const char* what) {
  const int64_t deadline = shm::MonotonicNs() + timeout_ms * 1'000'000;
  shm::Event& event = segment_->header().scheduler_event;
  while (true) {
    const uint32_t seen = event.Current();
    if (condition()) return absl::OkStatus();
    for (int rank = 0; rank < num_ranks(); ++rank) {
      const shm::RankArea& area = segment_->rank(rank);
      if (area.state.load() == static_cast<uint32_t>(shm::RankState::kFailed)) {
        return Internal("rank {} failed: {}", rank, area.error);
      }
      if (area.pid.load() != 0 && !segment_->RankIsAlive(rank)) {
        return Internal("rank {} died", rank);
      }
    }
    if (shm::MonotonicNs() > deadline) return DeadlineExceeded("waited in vain for {}", what);
    event.Wait(seen, std::min(deadline, shm::MonotonicNs() + 200'000'000));
  }
}

absl::Status PlanDriver::WaitReady(int64_t timeout_ms) {
  auto ready = [this] {
    for (int rank = 0; rank < num_ranks(); ++rank) {
      const uint32_t state = segment_->rank(rank).state.load(std::memory_order_acquire);
      if (state != static_cast<uint32_t>(shm::RankState::kReady)) return false;
    }
    return true;
  };
  return WaitFor(ready, timeout_ms, "the ranks to be ready");
}

absl::Status PlanDriver::Reset(int64_t timeout_ms) {
  segment_->header().epoch.store(++epoch_);
  step_ = 0;
  arena_used_ = 0;
  releases_.clear();
  binds_.clear();
  appends_.clear();
  copies_.clear();
  pages_of_slot_.clear();
  free_slots_.clear();
  free_pages_.clear();
  for (uint32_t slot = segment_->geometry().num_slots; slot-- > 0;) free_slots_.push_back(slot);
  for (uint32_t page = segment_->rank(0).num_pages.load(); page-- > 0;) free_pages_.push_back(page);
  // Pages in no order, as they come to lie in a server.
  std::reverse(free_pages_.begin() + static_cast<ptrdiff_t>(free_pages_.size() / 2),
               free_pages_.end());
  shm::PlanHeader header = {};
  header.bytes = sizeof(header);
  header.kind = shm::PlanKind::kReset;
  header.epoch = epoch_;
  SubmitRaw(header, nullptr, 0);
  auto acked = [this] {
    for (int rank = 0; rank < num_ranks(); ++rank) {
      if (segment_->rank(rank).acked_epoch.load() != epoch_) return false;
    }
    return true;
  };
  RETURN_IF_ERROR(WaitFor(acked, timeout_ms, "the ranks to begin the epoch"));
  for (int rank = 0; rank < num_ranks(); ++rank) {
    while (results_[rank].Next() != nullptr) {
    }
    segment_->rank(rank).result_cursor.store(results_[rank].cursor());
  }
  return absl::OkStatus();
}

template <typename T>
uint64_t PlanDriver::ToArena(const std::vector<T>& values) {
  const uint64_t at = arena_used_;
  const uint64_t bytes = values.size() * sizeof(T);
  CHECK(at + bytes <= segment_->arena().size());
  if (bytes > 0) std::memcpy(segment_->arena().data() + at, values.data(), bytes);
  arena_used_ += (bytes + 7) & ~uint64_t{7};
  return at;
}

uint32_t PlanDriver::Add(const DriverRequest& request, int max_len) {
  CHECK(!free_slots_.empty());
  const uint32_t slot = free_slots_.back();
  free_slots_.pop_back();
  shm::RequestSlot& object = segment_->slot(slot);
  ++object.generation;
  object.prompt_len =
      static_cast<uint32_t>(request.prompt_len > 0 ? request.prompt_len : request.ids.size());
  object.known_len = static_cast<uint32_t>(request.ids.size());
  object.ids_offset = ToArena(request.ids);
  object.sampling = request.sampling;
  binds_.push_back({slot, object.generation});
  const int page_size = static_cast<int>(segment_->rank(0).page_size.load());
  for (int i = 0; i < (max_len + page_size - 1) / page_size; ++i) {
    CHECK(!free_pages_.empty());
    appends_.push_back({slot, free_pages_.back()});
    pages_of_slot_[slot].push_back(free_pages_.back());
    free_pages_.pop_back();
  }
  return slot;
}

void PlanDriver::Release(uint32_t slot) {
  releases_.push_back({slot, segment_->slot(slot).generation});
  for (const uint32_t page : pages_of_slot_[slot]) free_pages_.push_back(page);
  pages_of_slot_.erase(slot);
  free_slots_.insert(free_slots_.begin(), slot);
}

uint64_t PlanDriver::Submit(const std::vector<shm::PlanRow>& rows) {
  shm::PlanHeader header = {};
  header.kind = shm::PlanKind::kStep;
  header.epoch = epoch_;
  header.step = ++step_;
  header.num_releases = static_cast<uint32_t>(releases_.size());
  header.num_binds = static_cast<uint32_t>(binds_.size());
  header.num_appends = static_cast<uint32_t>(appends_.size());
  header.num_copies = static_cast<uint32_t>(copies_.size());
  header.num_rows = static_cast<uint32_t>(rows.size());
  std::vector<std::byte> body;
  auto add = [&body](const auto& values) {
    const auto bytes = std::as_bytes(std::span(values));
    body.insert(body.end(), bytes.begin(), bytes.end());
  };
  add(releases_);
  add(binds_);
  add(appends_);
  add(copies_);
  add(rows);
  header.bytes = static_cast<uint32_t>(sizeof(header) + body.size());
  SubmitRaw(header, body.data(), body.size());
  releases_.clear();
  binds_.clear();
  appends_.clear();
  copies_.clear();
  return step_;
}

void PlanDriver::SubmitRaw(const shm::PlanHeader& header, const void* body, size_t bytes) {
  auto pad = [](std::byte* at, uint32_t size) {
    const uint32_t words[2] = {size, static_cast<uint32_t>(shm::PlanKind::kPad)};
    std::memcpy(at, words, sizeof(words));
  };
  auto reserve = [&] {
    uint64_t slowest = UINT64_MAX;
    for (int rank = 0; rank < num_ranks(); ++rank) {
      slowest = std::min(slowest, segment_->rank(rank).plan_cursor.load());
    }
    return plans_->Reserve(static_cast<uint32_t>(sizeof(header) + bytes), slowest, pad);
  };
  std::byte* record = nullptr;
  CHECK(WaitFor([&] { return (record = reserve()) != nullptr; }, 60'000, "room for a plan").ok());
  std::memcpy(record, &header, sizeof(header));
  if (bytes > 0) std::memcpy(record + sizeof(header), body, bytes);
  plans_->Publish();
  segment_->header().plan_event.Notify();
}

absl::StatusOr<StepResult> PlanDriver::Result(int rank, int64_t timeout_ms) {
  while (true) {
    const std::byte* record = nullptr;
    RETURN_IF_ERROR(WaitFor([&] { return (record = results_[rank].Next()) != nullptr; }, timeout_ms,
                            "a result"));
    uint32_t words[2];  // a pad may be shorter than a header
    std::memcpy(words, record, sizeof(words));
    StepResult result;
    if (words[1] != shm::kPadResult) {
      std::memcpy(&result.header, record, sizeof(result.header));
      const std::byte* at = record + sizeof(result.header);
      for (uint32_t i = 0; i < result.header.num_rows; ++i) {
        StepResult::Row& row = result.rows.emplace_back();
        std::memcpy(&row.row, at, sizeof(row.row));
        at += sizeof(row.row);
        row.top.resize(row.row.num_top);
        if (row.row.num_top > 0) {
          std::memcpy(row.top.data(), at, row.top.size() * sizeof(shm::ResultTop));
        }
        at += row.top.size() * sizeof(shm::ResultTop);
      }
      CHECK(at == record + result.header.bytes);
    }
    segment_->rank(rank).result_cursor.store(results_[rank].cursor(), std::memory_order_release);
    if (words[1] != shm::kPadResult) return result;
  }
}

absl::StatusOr<StepResult> PlanDriver::Finish(uint64_t step) {
  ASSIGN_OR_RETURN(StepResult result, Result(0));
  if (result.header.step != step || result.header.epoch != epoch_) {
    return Internal("step {} was answered by step {}", step, result.header.step);
  }
  for (int rank = 1; rank < num_ranks(); ++rank) {
    ASSIGN_OR_RETURN(const StepResult other, Result(rank));
    if (other.header.ids_hash != result.header.ids_hash || other.header.step != step) {
      return Internal("rank {} sampled other ids in step {}", rank, step);
    }
  }
  return result;
}

absl::StatusOr<std::vector<std::vector<shm::ResultRow>>> GenerateRows(
    PlanDriver* driver, const std::vector<DriverRequest>& requests, int max_new, int chunk,
    int ahead) {
  struct State {
    uint32_t slot;
    int length, known;  // ids computed and ids there are once the steps submitted so far have run
  };
  std::vector<State> states;
  std::map<uint32_t, size_t> index_of_slot;
  for (const DriverRequest& request : requests) {
    const int size = static_cast<int>(request.ids.size());
    states.push_back({driver->Add(request, size + max_new), 0, size});
    index_of_slot[states.back().slot] = states.size() - 1;
  }
  std::vector<std::vector<shm::ResultRow>> outputs(requests.size());
  std::queue<uint64_t> submitted;
  while (true) {
    std::vector<shm::PlanRow> rows;
    for (size_t i = 0; i < states.size(); ++i) {
      State& state = states[i];
      if (state.known == static_cast<int>(requests[i].ids.size()) + max_new) continue;
      const int n = std::min(chunk, state.known - state.length);
      const bool sample = state.length + n == state.known;
      rows.push_back({state.slot, static_cast<uint32_t>(state.length), static_cast<uint32_t>(n),
                      sample ? uint32_t{shm::kRowSample} : 0});
      state.length += n;
      if (sample) ++state.known;
    }
    if (rows.empty() && submitted.empty()) break;
    if (!rows.empty()) {
      submitted.push(driver->Submit(rows));
      if (static_cast<int>(submitted.size()) <= ahead) continue;
    }
    ASSIGN_OR_RETURN(const StepResult result, driver->Finish(submitted.front()));
    submitted.pop();
    for (const StepResult::Row& row : result.rows) {
      if (row.row.is_prompt == 0) outputs[index_of_slot[row.row.slot]].push_back(row.row);
    }
  }
  for (const State& state : states) driver->Release(state.slot);
  ASSIGN_OR_RETURN(const StepResult released, driver->Step({}));
  return outputs;
}

absl::StatusOr<std::vector<std::vector<int32_t>>> Generate(
    PlanDriver* driver, const std::vector<DriverRequest>& requests, int max_new, int chunk) {
  ASSIGN_OR_RETURN(const auto outputs, GenerateRows(driver, requests, max_new, chunk));
  std::vector<std::vector<int32_t>> ids;
  for (const std::vector<shm::ResultRow>& rows : outputs) {
    ids.emplace_back();
    for (const shm::ResultRow& row : rows) ids.back().push_back(row.token_id);
  }
  return ids;
}

}  // namespace penstock::worker
