#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/sampling_params.h"

namespace penstock::kernels::cpu {

// Changes a row of logits as SamplingParams asks, and puts the raw ones back. One thread at a time.
class Penalties {
 public:
  // Afterwards Apply allocates nothing for rows of up to vocab_size logits.
  void Reserve(int32_t vocab_size);

  // Logit bias, min_tokens mask, then repetition, frequency and presence penalties, in this order.
  // `ids` are those so far, the first prompt_len of them the prompt; ids outside the vocabulary are
  // ignored. Returns whether any logit was touched.
  bool Apply(const SamplingParams& params, std::span<const int32_t> ids, int32_t prompt_len,
             std::span<float> logits);

  // Undoes the last Apply.
  void Restore(std::span<float> logits);

 private:
  struct Change {
    int32_t id;
    float raw;
  };

  void Set(std::span<float> logits, int32_t id, float value);
  void Penalise(const SamplingParams& params, std::span<const int32_t> ids, int32_t prompt_len,
                std::span<float> logits);

  std::vector<Change> changes_;
  std::vector<int32_t> uses_;     // by id: in the output, doubled, plus 1 if seen in the prompt
  std::vector<int32_t> touched_;  // ids with uses_ other than 0; empty between calls
};

}  // namespace penstock::kernels::cpu
