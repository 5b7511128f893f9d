// The host staging of one step in flight: what the decoder and the sampler read while the device
// runs the plan, and where they put what is to be published. Sized once; building it allocates
// nothing.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "common/shm/layout.h"
#include "kernels/ops.h"
#include "worker/slot_table.h"

namespace penstock::worker {

// A plan record, checked to be as long as it says. Views the ring.
struct StepPlan {
  uint64_t epoch = 0;
  uint64_t step = 0;
  std::span<const shm::PlanSlot> releases, binds;
  std::span<const shm::PlanAppend> appends;
  std::span<const shm::PlanCopy> copies;
  std::span<const shm::PlanRow> rows;
};
absl::Status ParseStep(const shm::PlanHeader& header, StepPlan* plan);

// A row of the step's results.
struct Output {
  uint32_t slot;
  uint32_t generation;
  bool is_prompt;  // a prompt's own id, not a sampled one
};

class StepBatch {
 public:
  // For steps of up to max_tokens tokens of up to max_rows requests, and as many copied pages.
  StepBatch(int max_tokens, int max_rows);

  // Lays out the plan's rows, those of one token first. Their slots have been brought up to date;
  // accounts for the rows in `slots`, whose page table is the batch's.
  absl::Status Build(const StepPlan& plan, SlotTable* slots);

  // What the decoder runs. Views the batch, whose memory must stay until the step has been waited
  // for.
  kernels::StepInputs inputs();
  bool empty() const { return rows_.num_rows == 0; }
  // To be carried out before it.
  std::span<const kernels::PageCopy> copies() const { return copies_; }
  std::span<const Output> outputs() const { return outputs_; }
  std::span<const kernels::SampleRow> sample_rows() const { return sample_rows_; }
  // Of each output, once the step has run.
  std::span<const int32_t> ids() const { return {ids_.data(), outputs_.size()}; }
  std::span<const kernels::SampledLogprobs> logprobs() const {
    return {logprobs_.data(), outputs_.size()};
  }

 private:
  absl::Status AddCopies(const StepPlan& plan, const SlotLimits& limits);
  void AddRow(const shm::PlanRow& row, int r, const SlotTable& slots);
  void AddOutputs(const shm::PlanRow& row, int first_token, const SlotState& state);

  const int max_tokens_, max_rows_;
  std::vector<kernels::PageCopy> copies_;
  kernels::BatchRows rows_;
  std::vector<int32_t> token_begin_, context_len_, slot_of_token_, position_of_token_;
  std::vector<Output> outputs_;
  std::vector<int32_t> index_;
  std::vector<kernels::SampleRow> sample_rows_;
  std::vector<int32_t> ids_;
  std::vector<kernels::SampledLogprobs> logprobs_;
};

}  // namespace penstock::worker
