#include "kernels/cuda/step_staging.h"

#include <algorithm>

#include "kernels/cuda/device.h"
#include "kernels/cuda/memory.h"

namespace penstock::kernels::cuda {
namespace {

// Known ids and pages a step has room for; a step with more (many long prompts at once) copies the
// rest the slow way.
constexpr int64_t kMaxStagedTokens = int64_t{1} << 20;
constexpr int64_t kMaxStagedPages = int64_t{1} << 18;
constexpr size_t kSideBytes = size_t{4} << 20;  // stop ids and biases of a step

size_t Aligned(size_t bytes) { return (bytes + 15) & ~size_t{15}; }

template <typename T>
T* At(const std::unique_ptr<Buffer>& buffer, size_t offset) {
  return reinterpret_cast<T*>(buffer->as<std::byte>() + offset);
}

// Copies `from`, and fills up to `size` with `padding`.
void CopyPadded(std::span<const int32_t> from, int32_t* to, size_t size, int32_t padding) {
  std::copy(from.begin(), from.end(), to);
  std::fill(to + from.size(), to + size, padding);
}

int64_t Nanoseconds(float milliseconds) {
  return std::max<int64_t>(0, static_cast<int64_t>(milliseconds * 1e6));
}

}  // namespace

absl::StatusOr<std::unique_ptr<StepStaging>> StepStaging::Create(const StagingConfig& config) {
  std::unique_ptr<StepStaging> staging(new StepStaging(config));
  RETURN_IF_ERROR(staging->Init());
  return staging;
}

absl::Status StepStaging::Init() {
  const size_t tokens = config_.max_tokens;
  description_bytes_ =
      LayOut(config_.max_rows, config_.max_tokens, config_.max_tokens).side + kSideBytes;
  const int64_t num_pages = int64_t{config_.num_slots} * config_.max_pages_per_slot;
  for (Flight& flight : flights_) {
    ASSIGN_OR_RETURN(flight.description, AllocatePinned(description_bytes_));
    ASSIGN_OR_RETURN(flight.tokens, AllocatePinned(kMaxStagedTokens * sizeof(int32_t)));
    ASSIGN_OR_RETURN(flight.runs, AllocatePinned(config_.num_slots * sizeof(TokenRun)));
    ASSIGN_OR_RETURN(flight.pages,
                     AllocatePinned(std::min(num_pages, kMaxStagedPages) * sizeof(PageEntry)));
    ASSIGN_OR_RETURN(flight.ids, AllocatePinned(tokens * sizeof(int32_t)));
    ASSIGN_OR_RETURN(flight.logprobs, AllocatePinned(tokens * sizeof(SampledLogprobs)));
    PENSTOCK_CUDA(
        cudaEventCreateWithFlags(&flight.copied, cudaEventDisableTiming | cudaEventBlockingSync));
  }
  for (Clock& clock : clocks_) {
    PENSTOCK_CUDA(cudaEventCreate(&clock.began));
    PENSTOCK_CUDA(cudaEventCreate(&clock.ended));
  }
  ASSIGN_OR_RETURN(device_description_, AllocateDevice(description_bytes_));
  ASSIGN_OR_RETURN(page_table_, AllocateDevice(num_pages * sizeof(int32_t)));
  ASSIGN_OR_RETURN(device_ids_, AllocateDevice(tokens * sizeof(int32_t)));
  ASSIGN_OR_RETURN(device_logprobs_, AllocateDevice(tokens * sizeof(SampledLogprobs)));
  PENSTOCK_CUDA(cudaMemset(page_table_->data, 0, page_table_->bytes));
  // A captured step of padding alone runs once before it is filled.
  PENSTOCK_CUDA(cudaMemset(device_description_->data, 0, device_description_->bytes));
  PENSTOCK_CUDA(cudaDeviceSynchronize());
  num_known_pages_.assign(config_.num_slots, 0);
  return absl::OkStatus();
}

StepStaging::~StepStaging() {
  for (const Flight& flight : flights_) {
    if (flight.copied != nullptr) cudaEventDestroy(flight.copied);
  }
  for (const Clock& clock : clocks_) {
    if (clock.began != nullptr) cudaEventDestroy(clock.began);
    if (clock.ended != nullptr) cudaEventDestroy(clock.ended);
  }
}

absl::Status StepStaging::Bind(TokenTable table, int32_t slot, std::span<const int32_t> ids,
                               cudaStream_t stream) {
  num_known_pages_[slot] = 0;
  Flight& flight = flights_[num_staged_ % kMaxStepsInFlight];
  flight.table = table;
  const auto count = static_cast<int32_t>(ids.size());
  if (flight.num_runs == config_.num_slots || flight.num_tokens + count > kMaxStagedTokens) {
    // From pageable memory: the ids have been read when this returns.
    return CudaStatus(cudaMemcpyAsync(table.ids + slot * table.stride, ids.data(), ids.size_bytes(),
                                      cudaMemcpyHostToDevice, stream),
                      "copy of known ids");
  }
  flight.runs->as<TokenRun>()[flight.num_runs++] = {
      .slot = slot, .position = 0, .begin = flight.num_tokens, .count = count};
  std::copy(ids.begin(), ids.end(), flight.tokens->as<int32_t>() + flight.num_tokens);
  flight.num_tokens += count;
  return absl::OkStatus();
}

StepStaging::Layout StepStaging::LayOut(int32_t num_rows, int32_t num_tokens,
                                        int32_t num_outputs) const {
  Layout layout;
  size_t at = 0;
  auto take = [&](size_t count, size_t size) {
    const size_t begin = at;
    at += Aligned(count * size);
    return begin;
  };
  layout.token_begin = take(num_rows + 1, sizeof(int32_t));
  layout.context_len = take(num_rows, sizeof(int32_t));
  layout.slot_of_token = take(num_tokens, sizeof(int32_t));
  layout.position = take(num_tokens, sizeof(int32_t));
  layout.output_token = take(num_outputs, sizeof(int32_t));
  layout.outputs = take(num_outputs, sizeof(DeviceSampleRow));
  layout.side = at;
  return layout;
}

StagedStep StepStaging::OnDevice(const Layout& layout, int32_t num_rows, int32_t num_tokens) const {
  StagedStep step;
  step.rows.num_rows = num_rows;
  step.rows.num_tokens = num_tokens;
  step.rows.token_begin = At<int32_t>(device_description_, layout.token_begin);
  step.rows.context_len = At<int32_t>(device_description_, layout.context_len);
  step.rows.slot_of_token = At<int32_t>(device_description_, layout.slot_of_token);
  step.rows.position_of_token = At<int32_t>(device_description_, layout.position);
  step.rows.page_table = page_table_->as<int32_t>();
  step.rows.page_table_stride = config_.max_pages_per_slot;
  step.output_token = At<int32_t>(device_description_, layout.output_token);
  step.outputs = At<DeviceSampleRow>(device_description_, layout.outputs);
  step.side = At<int32_t>(device_description_, layout.side);
  return step;
}

StagedStep StepStaging::LayOutPadded(int32_t padded_rows) const {
  const Layout layout = LayOut(padded_rows, padded_rows, padded_rows);
  StagedStep step = OnDevice(layout, padded_rows, padded_rows);
  step.rows.num_single = padded_rows;
  return step;
}

absl::StatusOr<size_t> StepStaging::Describe(const StepInputs& inputs, const Layout& layout,
                                             int32_t padded_rows, Flight* flight) const {
  const BatchRows& rows = inputs.rows;
  const size_t num_rows = std::max(rows.num_rows, padded_rows);
  const size_t num_tokens = std::max(rows.num_tokens, padded_rows);
  const size_t num_outputs = std::max<size_t>(inputs.outputs.size(), padded_rows);
  const std::unique_ptr<Buffer>& out = flight->description;
  const size_t real_rows = rows.num_rows, real_tokens = rows.num_tokens;
  CopyPadded({rows.token_begin, real_rows + 1}, At<int32_t>(out, layout.token_begin), num_rows + 1,
             rows.num_tokens);
  CopyPadded({rows.context_len, real_rows}, At<int32_t>(out, layout.context_len), num_rows, 0);
  CopyPadded({rows.slot_of_token, real_tokens}, At<int32_t>(out, layout.slot_of_token), num_tokens,
             -1);
  CopyPadded({rows.position_of_token, real_tokens}, At<int32_t>(out, layout.position), num_tokens,
             0);
  CopyPadded(inputs.output_token, At<int32_t>(out, layout.output_token), num_outputs, -1);
  ASSIGN_OR_RETURN(
      const int32_t used,
      PackSampleRows(inputs.outputs, {At<DeviceSampleRow>(out, layout.outputs), num_outputs},
                     {At<int32_t>(out, layout.side), kSideBytes / sizeof(int32_t)}));
  return layout.side + used * sizeof(int32_t);
}

// Of the step's slots, those that the device's page table lacks: a slot's pages only grow.
absl::Status StepStaging::ListNewPages(const BatchRows& rows, Flight* flight, cudaStream_t stream) {
  const auto room = static_cast<int32_t>(flight->pages->bytes / sizeof(PageEntry));
  auto* entries = flight->pages->as<PageEntry>();
  for (int32_t r = 0; r < rows.num_rows; ++r) {
    const int32_t slot = rows.slot_of_token[rows.token_begin[r]];
    const int32_t count = (rows.context_len[r] + config_.page_size - 1) / config_.page_size;
    const int32_t* pages = rows.page_table + slot * rows.page_table_stride;
    int32_t& known = num_known_pages_[slot];
    if (count - known > room - flight->num_pages) {
      PENSTOCK_CUDA(cudaMemcpyAsync(
          page_table_->as<int32_t>() + slot * config_.max_pages_per_slot + known, pages + known,
          (count - known) * sizeof(int32_t), cudaMemcpyHostToDevice, stream));
      known = count;
    }
    for (; known < count; ++known) {
      entries[flight->num_pages++] = {.slot = slot, .index = known, .page = pages[known]};
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<StagedStep> StepStaging::Stage(const StepInputs& inputs, int32_t padded_rows,
                                              cudaStream_t stream) {
  Flight& flight = flights_[num_staged_ % kMaxStepsInFlight];
  const Clock& clock = clocks_[num_staged_ % clocks_.size()];
  const int32_t num_rows = std::max(inputs.rows.num_rows, padded_rows);
  const int32_t num_tokens = std::max(inputs.rows.num_tokens, padded_rows);
  const int32_t num_outputs = std::max(static_cast<int32_t>(inputs.outputs.size()), padded_rows);
  const Layout layout = LayOut(num_rows, num_tokens, num_outputs);
  ASSIGN_OR_RETURN(const size_t bytes, Describe(inputs, layout, padded_rows, &flight));
  flight.inputs = inputs;
  flight.any_logprobs = std::any_of(inputs.outputs.begin(), inputs.outputs.end(),
                                    [](const SampleRow& row) { return row.num_top >= 0; });
  RETURN_IF_ERROR(ListNewPages(inputs.rows, &flight, stream));

  RETURN_IF_ERROR(CopyTokens(stream, flight.runs->as<TokenRun>(), flight.num_runs,
                             flight.tokens->as<int32_t>(), flight.table));
  RETURN_IF_ERROR(ScatterPages(stream, flight.pages->as<PageEntry>(), flight.num_pages,
                               page_table_->as<int32_t>(), config_.max_pages_per_slot));
  PENSTOCK_CUDA(cudaMemcpyAsync(device_description_->data, flight.description->data, bytes,
                                cudaMemcpyHostToDevice, stream));
  PENSTOCK_CUDA(cudaEventRecord(clock.began, stream));
  flight.num_runs = flight.num_tokens = flight.num_pages = 0;
  StagedStep step = OnDevice(layout, num_rows, num_tokens);
  step.rows.num_single = padded_rows > 0 ? padded_rows : inputs.rows.num_single;
  step.rows.host_token_begin = inputs.rows.host_token_begin;
  step.rows.host_context_len = inputs.rows.host_context_len;
  return step;
}

absl::Status StepStaging::Finish(cudaStream_t stream) {
  Flight& flight = flights_[num_staged_ % kMaxStepsInFlight];
  PENSTOCK_CUDA(cudaEventRecord(clocks_[num_staged_ % clocks_.size()].ended, stream));
  const size_t count = flight.inputs.outputs.size();
  if (count > 0) {
    PENSTOCK_CUDA(cudaMemcpyAsync(flight.ids->data, device_ids_->data, count * sizeof(int32_t),
                                  cudaMemcpyDeviceToHost, stream));
  }
  if (flight.any_logprobs) {
    PENSTOCK_CUDA(cudaMemcpyAsync(flight.logprobs->data, device_logprobs_->data,
                                  count * sizeof(SampledLogprobs), cudaMemcpyDeviceToHost, stream));
  }
  PENSTOCK_CUDA(cudaEventRecord(flight.copied, stream));
  ++num_staged_;
  return absl::OkStatus();
}

absl::StatusOr<StepReport> StepStaging::Wait() {
  const Flight& flight = flights_[num_waited_ % kMaxStepsInFlight];
  const Clock& clock = clocks_[num_waited_ % clocks_.size()];
  PENSTOCK_CUDA(cudaEventSynchronize(flight.copied));
  StepReport report;
  float milliseconds = 0;
  PENSTOCK_CUDA(cudaEventElapsedTime(&milliseconds, clock.began, clock.ended));
  report.run_ns = Nanoseconds(milliseconds);
  if (num_waited_ > 0) {
    const Clock& before = clocks_[(num_waited_ - 1) % clocks_.size()];
    PENSTOCK_CUDA(cudaEventElapsedTime(&milliseconds, before.ended, clock.began));
    report.idle_ns = Nanoseconds(milliseconds);
  }
  ++num_waited_;
  const StepInputs& inputs = flight.inputs;
  std::copy_n(flight.ids->as<int32_t>(), inputs.outputs.size(), inputs.ids.begin());
  if (flight.any_logprobs) {
    std::copy_n(flight.logprobs->as<SampledLogprobs>(), inputs.outputs.size(),
                inputs.logprobs.begin());
  }
  for (size_t i = 0; i < inputs.outputs.size(); ++i) {
    if (inputs.outputs[i].target_id < 0 && inputs.ids[i] < 0) {
      return Internal("slot {}, position {}: no id can be sampled, its logits are not numbers",
                      inputs.outputs[i].slot, inputs.outputs[i].position);
    }
  }
  return report;
}

}  // namespace penstock::kernels::cuda
