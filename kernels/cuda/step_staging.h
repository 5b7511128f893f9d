// What a step takes to the GPU and brings back, without waiting: two steps may be under way.
//
// The step's description (rows, outputs, what to sample) is written to pinned memory and goes to
// the device in one copy, to addresses that depend on the step's padded size alone, so that a
// captured graph of that size finds it. Known ids and new pages are read from pinned memory by a
// kernel each, before. Sampled ids come back in one copy.
//
// Begin order: Bind any number of times, Stage, [the step's kernels], Finish; Wait on any thread.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/sampler.h"
#include "kernels/ops.h"

namespace penstock::kernels::cuda {

constexpr int kMaxStepsInFlight = 2;

// Where a step's description lies on the device.
struct StagedStep {
  BatchRows rows;                            // host_token_begin and host_context_len in host memory
  const int32_t* output_token = nullptr;     // [O], -1: padding
  const DeviceSampleRow* outputs = nullptr;  // [O]
  const int32_t* side = nullptr;
};

struct StagingConfig {
  int32_t num_slots = 0;
  int32_t max_pages_per_slot = 0;  // page_table_stride of every step
  int32_t page_size = 0;
  int32_t max_tokens = 0;  // of a step; bounds its outputs too
  int32_t max_rows = 0;
};

class StepStaging {
 public:
  // RESOURCE_EXHAUSTED without memory. On the current device.
  static absl::StatusOr<std::unique_ptr<StepStaging>> Create(const StagingConfig& config);
  ~StepStaging();
  StepStaging(const StepStaging&) = delete;
  StepStaging& operator=(const StepStaging&) = delete;

  // Known ids of a request that takes `slot`, for the next step.
  absl::Status Bind(TokenTable table, int32_t slot, std::span<const int32_t> ids,
                    cudaStream_t stream);

  // Queues the copies of a step. padded_rows > 0: its rows, tokens and outputs, which are at most
  // so many of each, are padded to that number. The caller sees to it that no more than
  // kMaxStepsInFlight are under way.
  absl::StatusOr<StagedStep> Stage(const StepInputs& inputs, int32_t padded_rows,
                                   cudaStream_t stream);
  // Where a padded step will lie, for capturing.
  StagedStep LayOutPadded(int32_t padded_rows) const;

  // Where the step's samplers write, [O].
  int32_t* ids() const { return device_ids_->as<int32_t>(); }
  SampledLogprobs* logprobs() const { return device_logprobs_->as<SampledLogprobs>(); }

  // After the step's last kernel: queues the copy of its results.
  absl::Status Finish(cudaStream_t stream);
  // Waits for the oldest step that was finished and not waited for, and hands out its results.
  // INTERNAL for an error of the device, and for an output that could not be sampled.
  absl::StatusOr<StepReport> Wait();

 private:
  // Byte offsets of the description's parts.
  struct Layout {
    size_t token_begin, context_len, slot_of_token, position, output_token, outputs, side;
  };
  // A step under way: [step % kMaxStepsInFlight].
  struct Flight {
    std::unique_ptr<Buffer> description;    // pinned
    std::unique_ptr<Buffer> tokens, runs;   // pinned: known ids and where they go
    std::unique_ptr<Buffer> pages;          // pinned: PageEntry
    std::unique_ptr<Buffer> ids, logprobs;  // pinned: results
    int32_t num_tokens = 0, num_runs = 0, num_pages = 0;
    TokenTable table;
    StepInputs inputs;
    bool any_logprobs = false;
    cudaEvent_t copied = nullptr;  // the results are there
  };
  // Of a step and the one before it, while two are under way: [step % 3].
  struct Clock {
    cudaEvent_t began = nullptr, ended = nullptr;
  };

  explicit StepStaging(const StagingConfig& config) : config_(config) {}
  absl::Status Init();
  Layout LayOut(int32_t num_rows, int32_t num_tokens, int32_t num_outputs) const;
  StagedStep OnDevice(const Layout& layout, int32_t num_rows, int32_t num_tokens) const;
  // Returns the bytes of the description.
  absl::StatusOr<size_t> Describe(const StepInputs& inputs, const Layout& layout,
                                  int32_t padded_rows, Flight* flight) const;
  absl::Status ListNewPages(const BatchRows& rows, Flight* flight, cudaStream_t stream);

  const StagingConfig config_;
  size_t description_bytes_ = 0;
  std::array<Flight, kMaxStepsInFlight> flights_;
  std::array<Clock, kMaxStepsInFlight + 1> clocks_;
  std::unique_ptr<Buffer> device_description_, page_table_, device_ids_, device_logprobs_;
  std::vector<int32_t> num_known_pages_;  // of each slot, on the device
  int64_t num_staged_ = 0;                // the driving thread's
  int64_t num_waited_ = 0;                // the waiting thread's
};

}  // namespace penstock::kernels::cuda
