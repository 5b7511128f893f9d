#include "worker/slot_table.h"

#include <algorithm>
#include <type_traits>

#include "common/status.h"

namespace penstock::worker {
namespace {

// The arena stores biases as the kernels read them.
static_assert(sizeof(kernels::LogitBias) == 8 && std::is_trivially_copyable_v<kernels::LogitBias>);

template <typename T>
absl::Status View(std::span<const std::byte> arena, uint64_t offset, uint64_t count,
                  const char* what, std::span<const T>* view) {
  if (count == 0) {
    *view = {};
    return absl::OkStatus();
  }
  if (offset % alignof(T) != 0 || offset > arena.size() ||
      count > (arena.size() - offset) / sizeof(T)) {
    return Internal("request object: {} ({} at {}) lie outside the arena of {} bytes", what, count,
                    offset, arena.size());
  }
  *view = {reinterpret_cast<const T*>(arena.data() + offset), count};
  return absl::OkStatus();
}

absl::Status CheckIds(std::span<const int32_t> ids, int vocab_size, const char* what) {
  uint32_t largest = 0;  // negative ids wrap to large ones
  for (const int32_t id : ids) largest = std::max(largest, static_cast<uint32_t>(id));
  if (ids.empty() || largest < static_cast<uint32_t>(vocab_size)) return absl::OkStatus();
  return Internal("request object: {} hold {}, which is outside the vocabulary of {}", what,
                  static_cast<int32_t>(largest), vocab_size);
}

}  // namespace

SlotTable::SlotTable(const SlotLimits& limits)
    : limits_(limits),
      max_pages_((limits.max_model_len + limits.page_size - 1) / limits.page_size),
      states_(limits.num_slots),
      pages_(limits.num_slots * max_pages_) {}

void SlotTable::Reset() {
  for (SlotState& state : states_) state = SlotState{};
  num_bound_ = 0;
}

absl::Status SlotTable::CheckBound(uint32_t slot, const char* what) const {
  if (slot < states_.size() && states_[slot].bound) return absl::OkStatus();
  return Internal("plan: {} names slot {}, which is not bound (of {} slots)", what, slot,
                  states_.size());
}

absl::Status SlotTable::Release(const shm::PlanSlot& release) {
  RETURN_IF_ERROR(CheckBound(release.slot, "release"));
  if (states_[release.slot].generation != release.generation) {
    return Internal("plan: release of slot {} generation {}, but it is bound to {}", release.slot,
                    release.generation, states_[release.slot].generation);
  }
  states_[release.slot] = SlotState{};
  --num_bound_;
  return absl::OkStatus();
}

absl::Status SlotTable::Bind(const shm::PlanSlot& bind, const shm::RequestSlot& request,
                             std::span<const std::byte> arena,
                             std::span<const int32_t>* known_ids) {
  if (bind.slot >= states_.size() || states_[bind.slot].bound) {
    return Internal("plan: bind of slot {}, which is bound already or not one of {}", bind.slot,
                    states_.size());
  }
  if (request.generation != bind.generation) {
    return Internal("plan: bind of slot {} generation {}, but the request object has {}", bind.slot,
                    bind.generation, request.generation);
  }
  const int vocab_size = limits_.vocab_size;
  if (request.prompt_len < 1 || request.prompt_len > request.known_len ||
      request.known_len > static_cast<uint32_t>(limits_.max_model_len)) {
    return Internal("request object: prompt of {} and {} known ids, of at most {}",
                    request.prompt_len, request.known_len, limits_.max_model_len);
  }
  const shm::SamplingRecord& record = request.sampling;
  SlotState state;
  RETURN_IF_ERROR(View(arena, request.ids_offset, request.known_len, "ids", known_ids));
  RETURN_IF_ERROR(CheckIds(*known_ids, vocab_size, "ids"));
  RETURN_IF_ERROR(View(arena, record.stop_ids_offset, record.num_stop_ids, "stop ids",
                       &state.sampling.stop_ids));
  RETURN_IF_ERROR(CheckIds(state.sampling.stop_ids, vocab_size, "stop ids"));
  RETURN_IF_ERROR(View(arena, record.logit_bias_offset, record.num_logit_bias, "logit biases",
                       &state.sampling.logit_bias));
  for (const kernels::LogitBias& bias : state.sampling.logit_bias) {
    RETURN_IF_ERROR(CheckIds({&bias.token_id, 1}, vocab_size, "logit biases"));
  }
  state.bound = true;
  state.generation = bind.generation;
  state.prompt_len = static_cast<int32_t>(request.prompt_len);
  state.num_ids = static_cast<int32_t>(request.known_len);
  state.prompt = known_ids->first(request.prompt_len);
  state.num_top_logprobs = std::clamp(record.num_top_logprobs, -1, kernels::kMaxTopLogprobs);
  state.num_prompt_logprobs = std::clamp(record.num_prompt_logprobs, -1, kernels::kMaxTopLogprobs);
  state.sampling.temperature = record.temperature;
  state.sampling.top_k = record.top_k;
  state.sampling.top_p = record.top_p;
  state.sampling.min_p = record.min_p;
  state.sampling.repetition_penalty = record.repetition_penalty;
  state.sampling.presence_penalty = record.presence_penalty;
  state.sampling.frequency_penalty = record.frequency_penalty;
  state.sampling.seed = record.seed;
  state.sampling.min_tokens = record.min_tokens;
  states_[bind.slot] = state;
  ++num_bound_;
  return absl::OkStatus();
}

absl::Status SlotTable::Append(const shm::PlanAppend& append) {
  RETURN_IF_ERROR(CheckBound(append.slot, "append"));
  SlotState& state = states_[append.slot];
  if (append.page >= static_cast<uint32_t>(limits_.num_pages) ||
      static_cast<size_t>(state.num_pages) == max_pages_) {
    return Internal("plan: page {} (of {}) for slot {}, which has {} of at most {}", append.page,
                    limits_.num_pages, append.slot, state.num_pages, max_pages_);
  }
  pages_[append.slot * max_pages_ + state.num_pages++] = static_cast<int32_t>(append.page);
  return absl::OkStatus();
}

absl::Status SlotTable::TakeRow(const shm::PlanRow& row, uint64_t step) {
  RETURN_IF_ERROR(CheckBound(row.slot, "row"));
  SlotState& state = states_[row.slot];
  const uint64_t end = uint64_t{row.start} + row.num_tokens;
  if (row.num_tokens == 0 || end > static_cast<uint64_t>(state.num_ids)) {
    return Internal("plan: row of slot {} computes ids {}..{}, but {} are known", row.slot,
                    row.start, end, state.num_ids);
  }
  if (end > uint64_t{static_cast<uint32_t>(state.num_pages)} * limits_.page_size) {
    return Internal("plan: row of slot {} needs {} tokens in {} pages of {}", row.slot, end,
                    state.num_pages, limits_.page_size);
  }
  if (state.last_step == step) {
    return Internal("plan: slot {} has two rows in step {}", row.slot, step);
  }
  state.last_step = step;
  if ((row.flags & shm::kRowSample) == 0) return absl::OkStatus();
  if (end < static_cast<uint64_t>(state.prompt_len)) {
    return Internal("plan: row of slot {} samples at {} inside its prompt of {}", row.slot, end,
                    state.prompt_len);
  }
  state.num_ids = std::max(state.num_ids, static_cast<int32_t>(end) + 1);
  return absl::OkStatus();
}

}  // namespace penstock::worker
