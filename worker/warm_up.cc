#include "worker/warm_up.h"

#include <algorithm>
#include <vector>

#include "common/log.h"
#include "common/shm/segment.h"
#include "common/status.h"

namespace penstock::worker {
namespace {

// Steps of `num_tokens` tokens in rows as long as can be, or of `num_rows` rows of one token; slots
// from 0 on, all of whose pages are page 0.
class DummyStep {
 public:
  explicit DummyStep(const WarmUpLimits& limits)
      : limits_(limits),
        page_table_stride_((limits.max_model_len + limits.page_size - 1) / limits.page_size),
        page_table_(limits.max_rows * page_table_stride_) {}

  kernels::StepInputs Decode(int num_rows) {
    Clear();
    for (int r = 0; r < num_rows; ++r) AddRow(1);
    rows_.num_single = num_rows;
    return Inputs();
  }
  kernels::StepInputs Prefill(int num_tokens) {
    Clear();
    while (num_tokens > 0 && rows_.num_rows < limits_.max_rows) {
      const int length = std::min(num_tokens, limits_.max_model_len);
      AddRow(length);
      num_tokens -= length;
    }
    return Inputs();
  }

 private:
  void Clear() {
    rows_ = {};
    token_begin_ = {0};
    context_len_.clear();
    slot_of_token_.clear();
    position_of_token_.clear();
    output_token_.clear();
    outputs_.clear();
  }

  void AddRow(int length) {
    const int slot = rows_.num_rows++;
    for (int i = 0; i < length; ++i) {
      slot_of_token_.push_back(slot);
      position_of_token_.push_back(i);
    }
    rows_.num_tokens += length;
    token_begin_.push_back(rows_.num_tokens);
    context_len_.push_back(length);
    output_token_.push_back(rows_.num_tokens - 1);
    outputs_.push_back(
        {.params = &params_, .slot = slot, .position = length, .prompt_len = length});
  }

  kernels::StepInputs Inputs() {
    rows_.token_begin = rows_.host_token_begin = token_begin_.data();
    rows_.context_len = rows_.host_context_len = context_len_.data();
    rows_.page_table = page_table_.data();
    rows_.page_table_stride = page_table_stride_;
    rows_.slot_of_token = slot_of_token_.data();
    rows_.position_of_token = position_of_token_.data();
    ids_.resize(outputs_.size());
    logprobs_.resize(outputs_.size());
    return {.rows = rows_,
            .output_token = output_token_,
            .outputs = outputs_,
            .ids = ids_,
            .logprobs = logprobs_};
  }

  const WarmUpLimits limits_;
  const int64_t page_table_stride_;
  const std::vector<int32_t> page_table_;
  const kernels::SamplingParams params_;
  kernels::BatchRows rows_;
  std::vector<int32_t> token_begin_, context_len_, slot_of_token_, position_of_token_;
  std::vector<int32_t> output_token_, ids_;
  std::vector<kernels::SampleRow> outputs_;
  std::vector<kernels::SampledLogprobs> logprobs_;
};

}  // namespace

absl::Status WarmUp(kernels::Backend* backend, Decoder* decoder, const WarmUpLimits& limits,
                    kernels::TokenTable tokens) {
  if (backend->max_steps_in_flight() == 1 || !backend->needs_weights()) return absl::OkStatus();
  const int64_t begin_ns = shm::MonotonicNs();
  DummyStep dummy(limits);
  auto run = [&](const kernels::StepInputs& step) -> absl::Status {
    RETURN_IF_ERROR(decoder->Step(step, tokens));
    return backend->WaitStep().status();
  };
  for (int num_tokens = limits.max_tokens; num_tokens > 1; num_tokens /= 2) {
    RETURN_IF_ERROR(run(dummy.Prefill(num_tokens)));
  }
  // The largest first: what it needs the others have.
  std::vector<int32_t> sizes = backend->CaptureSizes();
  std::reverse(sizes.begin(), sizes.end());
  for (const int32_t num_rows : sizes) RETURN_IF_ERROR(run(dummy.Decode(num_rows)));
  for (const int32_t num_rows : sizes) RETURN_IF_ERROR(decoder->Capture(num_rows, tokens));
  spdlog::info("msg=\"warmed up\" captured={} seconds={:.2f}", sizes.size(),
               static_cast<double>(shm::MonotonicNs() - begin_ns) * 1e-9);
  return absl::OkStatus();
}

}  // namespace penstock::worker
