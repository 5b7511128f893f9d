// How a request samples. The sampler's view: pointers are into memory that lives as long as the
// request's slot.
#pragma once

#include <cstdint>
#include <span>

namespace penstock::kernels {

struct LogitBias {
  int32_t token_id = 0;
  float bias = 0;
};

// Order of application, as in vLLM: logit bias, min_tokens mask, penalties, temperature, then
// min-p, top-k, top-p.
struct SamplingParams {
  float temperature = 1.0f;         // 0: greedy (ties go to the lowest id)
  int32_t top_k = 0;                // 0: off
  float top_p = 1.0f;               // (0, 1]
  float min_p = 0.0f;               // [0, 1]: drop ids less likely than min_p times the best
  float repetition_penalty = 1.0f;  // > 0; over prompt and output (Keskar et al., 2019)
  float presence_penalty = 0.0f;    // over output
  float frequency_penalty = 0.0f;   // over output
  uint64_t seed = 0;
  int32_t min_tokens = 0;  // stop ids cannot be sampled before this many output ids
  std::span<const int32_t> stop_ids;
  std::span<const LogitBias> logit_bias;
};

}  // namespace penstock::kernels
