// Sampling on the GPU: kernels/sampling_params.h's semantics, one kernel for every kind of row.
//
// A row of logits is held in the shared memory of a cluster of 8 blocks, so that however much a row
// asks for, its logits are read from memory once (twice if penalties or a draw come before
// log-probabilities). Top-k and top-p sort nothing: they narrow a range of (value, id) keys by
// counting or summing what lies above, until few enough keys are left to order directly. What a row
// asks for is read on the device, so that one captured launch serves any mix of rows. Results
// depend on the row alone and are the same bits every time.
//
// GPUs before compute capability 9.0 have no clusters: one block does a row, in a copy of it in
// `workspace`. Same results but for the rounding of sums.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "kernels/ops.h"

namespace penstock::kernels::cuda {

// A SampleRow as the device reads it. Stop ids and biases lie in an int32 array beside the rows:
// stop ids as they are, a bias as an id and the bits of its float.
struct alignas(16) DeviceSampleRow {
  int32_t slot = -1;  // negative: a padded row, nothing is done
  int32_t position = 0;
  int32_t prompt_len = 0;
  int32_t target_id = -1;
  int32_t num_top = -1;
  int32_t top_k = 0;
  float temperature = 0;
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  uint64_t seed = 0;
  int32_t stop_begin = 0;  // in int32 of the side array, as bias_begin
  int32_t stop_count = 0;  // 0 once min_tokens is reached
  int32_t bias_begin = 0;
  int32_t bias_count = 0;
};
static_assert(sizeof(DeviceSampleRow) == 80);

// Packs rows to out[0 .. rows.size()), pads the rest of `out`, and puts stop ids and biases in
// `side`. Returns how many int32 of `side` are used; RESOURCE_EXHAUSTED says how many it needs.
absl::StatusOr<int32_t> PackSampleRows(std::span<const SampleRow> rows,
                                       std::span<DeviceSampleRow> out, std::span<int32_t> side);

// How rows of a vocabulary are sampled on the current device. Made once, at start.
struct SamplerPlan {
  int32_t vocab_size = 0;
  int32_t blocks_per_row = 1;
  int32_t shared_bytes = 0;
  size_t workspace_bytes_per_row = 0;  // 0 with clusters
};
absl::StatusOr<SamplerPlan> PlanSampler(int32_t vocab_size);

struct SampleLaunch {             // all device memory
  const float* logits = nullptr;  // [count, V], left as they are
  int32_t count = 0;
  const DeviceSampleRow* rows = nullptr;  // [count]
  const int32_t* side = nullptr;
  TokenTable tokens;
  int32_t* ids_out = nullptr;               // [count]; not written for padded rows
  SampledLogprobs* logprobs_out = nullptr;  // [count]; may be null if no row has num_top >= 0
  void* workspace = nullptr;                // count * workspace_bytes_per_row
};
absl::Status Sample(cudaStream_t stream, const SamplerPlan& plan, const SampleLaunch& launch);

}  // namespace penstock::kernels::cuda
