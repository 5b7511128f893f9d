#include "worker/step_batch.h"

#include <algorithm>

#include "common/status.h"

namespace penstock::worker {

absl::Status ParseStep(const shm::PlanHeader& header, StepPlan* plan) {
  const uint64_t slots = uint64_t{header.num_releases} + header.num_binds;
  const uint64_t needed = sizeof(shm::PlanHeader) + slots * sizeof(shm::PlanSlot) +
                          uint64_t{header.num_appends} * sizeof(shm::PlanAppend) +
                          uint64_t{header.num_copies} * sizeof(shm::PlanCopy) +
                          uint64_t{header.num_rows} * sizeof(shm::PlanRow);
  if (needed > header.bytes) {
    return Internal("plan: step {} has {} bytes but its records need {}", header.step, header.bytes,
                    needed);
  }
  plan->epoch = header.epoch;
  plan->step = header.step;
  const auto* slot = reinterpret_cast<const shm::PlanSlot*>(&header + 1);
  plan->releases = {slot, header.num_releases};
  plan->binds = {slot + header.num_releases, header.num_binds};
  const auto* append = reinterpret_cast<const shm::PlanAppend*>(slot + slots);
  plan->appends = {append, header.num_appends};
  const auto* copy = reinterpret_cast<const shm::PlanCopy*>(append + header.num_appends);
  plan->copies = {copy, header.num_copies};
  plan->rows = {reinterpret_cast<const shm::PlanRow*>(copy + header.num_copies), header.num_rows};
  return absl::OkStatus();
}

StepBatch::StepBatch(int max_tokens, int max_rows)
    : max_tokens_(max_tokens),
      max_rows_(max_rows),
      token_begin_(max_rows + 1),
      context_len_(max_rows),
      slot_of_token_(max_tokens),
      position_of_token_(max_tokens),
      ids_(max_tokens),
      logprobs_(max_tokens) {
  copies_.reserve(max_rows);
  outputs_.reserve(max_tokens);
  index_.reserve(max_tokens);
  sample_rows_.reserve(max_tokens);
  rows_.token_begin = token_begin_.data();
  rows_.context_len = context_len_.data();
  rows_.host_token_begin = rows_.token_begin;
  rows_.host_context_len = rows_.context_len;
  rows_.slot_of_token = slot_of_token_.data();
  rows_.position_of_token = position_of_token_.data();
}

kernels::StepInputs StepBatch::inputs() {
  return {.rows = rows_,
          .output_token = index_,
          .outputs = sample_rows_,
          .ids = std::span(ids_).first(outputs_.size()),
          .logprobs = std::span(logprobs_).first(outputs_.size())};
}

absl::Status StepBatch::Build(const StepPlan& plan, SlotTable* slots) {
  rows_.num_rows = rows_.num_tokens = rows_.num_single = 0;
  rows_.page_table = slots->page_table();
  rows_.page_table_stride = slots->max_pages();
  outputs_.clear();
  index_.clear();
  sample_rows_.clear();
  uint64_t num_tokens = 0;
  for (const shm::PlanRow& row : plan.rows) num_tokens += row.num_tokens;
  if (plan.rows.size() > static_cast<size_t>(max_rows_) ||
      num_tokens > static_cast<uint64_t>(max_tokens_)) {
    return Internal("plan: step {} has {} rows and {} tokens, more than {} and {}", plan.step,
                    plan.rows.size(), num_tokens, max_rows_, max_tokens_);
  }
  RETURN_IF_ERROR(AddCopies(plan, slots->limits()));
  for (const bool single : {true, false}) {
    for (const shm::PlanRow& row : plan.rows) {
      if ((row.num_tokens == 1) != single) continue;
      RETURN_IF_ERROR(slots->TakeRow(row, plan.step));
      AddRow(row, rows_.num_rows, *slots);
    }
    if (single) rows_.num_single = rows_.num_rows;
  }
  return absl::OkStatus();
}

absl::Status StepBatch::AddCopies(const StepPlan& plan, const SlotLimits& limits) {
  copies_.clear();
  if (plan.copies.size() > static_cast<size_t>(max_rows_)) {
    return Internal("plan: step {} copies {} pages, more than {}", plan.step, plan.copies.size(),
                    max_rows_);
  }
  const auto num_pages = static_cast<uint32_t>(limits.num_pages);
  for (const shm::PlanCopy& copy : plan.copies) {
    if (copy.from >= num_pages || copy.to >= num_pages || copy.from == copy.to) {
      return Internal("plan: step {} copies page {} to {}, of {}", plan.step, copy.from, copy.to,
                      num_pages);
    }
    copies_.push_back({static_cast<int32_t>(copy.from), static_cast<int32_t>(copy.to)});
  }
  return absl::OkStatus();
}

void StepBatch::AddRow(const shm::PlanRow& row, int r, const SlotTable& slots) {
  const int first = rows_.num_tokens;
  const int end = static_cast<int>(row.start + row.num_tokens);
  context_len_[r] = end;
  for (uint32_t i = 0; i < row.num_tokens; ++i) {
    slot_of_token_[first + i] = static_cast<int32_t>(row.slot);
    position_of_token_[first + i] = static_cast<int32_t>(row.start + i);
  }
  rows_.num_tokens = first + static_cast<int>(row.num_tokens);
  rows_.num_rows = r + 1;
  token_begin_[0] = 0;
  token_begin_[r + 1] = rows_.num_tokens;
  AddOutputs(row, first, slots.state(row.slot));
}

void StepBatch::AddOutputs(const shm::PlanRow& row, int first_token, const SlotState& state) {
  auto add = [&](int token, int target_id, int num_top) {
    kernels::SampleRow sample;
    sample.params = &state.sampling;
    sample.slot = static_cast<int32_t>(row.slot);
    sample.position = static_cast<int32_t>(row.start) + token + 1;
    sample.prompt_len = state.prompt_len;
    sample.target_id = target_id;
    sample.num_top = num_top;
    sample_rows_.push_back(sample);
    index_.push_back(first_token + token);
    outputs_.push_back({row.slot, state.generation, target_id >= 0});
  };
  const int num_tokens = static_cast<int>(row.num_tokens);
  if ((row.flags & shm::kRowPromptLogprobs) != 0) {
    for (int i = 0; i < num_tokens; ++i) {
      const int next = static_cast<int>(row.start) + i + 1;
      if (next >= state.prompt_len) break;
      add(i, state.prompt[next], std::max(0, state.num_prompt_logprobs));
    }
  }
  if ((row.flags & shm::kRowSample) != 0) add(num_tokens - 1, -1, state.num_top_logprobs);
}

}  // namespace penstock::worker
