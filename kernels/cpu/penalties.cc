#include "kernels/cpu/penalties.h"

#include <limits>

namespace penstock::kernels::cpu {

void Penalties::Reserve(int32_t vocab_size) {
  // Every id may change once by a penalty, and biases and stop ids come on top.
  changes_.reserve(2 * static_cast<size_t>(vocab_size));
  touched_.reserve(vocab_size);
  uses_.resize(vocab_size);
}

void Penalties::Set(std::span<float> logits, int32_t id, float value) {
  changes_.push_back({id, logits[id]});
  logits[id] = value;
}

bool Penalties::Apply(const SamplingParams& params, std::span<const int32_t> ids,
                      int32_t prompt_len, std::span<float> logits) {
  changes_.clear();
  const auto known = [&](int32_t id) { return id >= 0 && static_cast<size_t>(id) < logits.size(); };
  for (const LogitBias& bias : params.logit_bias) {
    if (known(bias.token_id)) {
      Set(logits, bias.token_id, logits[bias.token_id] + bias.bias);
    }
  }
  if (static_cast<int64_t>(ids.size()) - prompt_len < params.min_tokens) {
    for (const int32_t id : params.stop_ids) {
      if (known(id)) Set(logits, id, -std::numeric_limits<float>::infinity());
    }
  }
  if (params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f ||
      params.frequency_penalty != 0.0f) {
    Penalise(params, ids, prompt_len, logits);
  }
  return !changes_.empty();
}

void Penalties::Penalise(const SamplingParams& params, std::span<const int32_t> ids,
                         int32_t prompt_len, std::span<float> logits) {
  if (uses_.size() < logits.size()) Reserve(static_cast<int32_t>(logits.size()));
  // Presence and frequency look at the output alone.
  const size_t prompt = static_cast<size_t>(prompt_len);
  for (size_t i = params.repetition_penalty != 1.0f ? 0 : prompt; i < ids.size(); ++i) {
    const int32_t id = ids[i];
    if (id < 0 || static_cast<size_t>(id) >= logits.size()) continue;
    if (uses_[id] == 0) touched_.push_back(id);
    if (i >= prompt) {
      uses_[id] += 2;
    } else {
      uses_[id] |= 1;
    }
  }
  for (const int32_t id : touched_) {
    float logit = logits[id];
    logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    const int32_t outputs = uses_[id] / 2;
    logit -= params.frequency_penalty * static_cast<float>(outputs);
    if (outputs > 0) logit -= params.presence_penalty;
    Set(logits, id, logit);
    uses_[id] = 0;
  }
  touched_.clear();
}

void Penalties::Restore(std::span<float> logits) {
  // Backwards: an id may have changed more than once.
  for (size_t i = changes_.size(); i-- > 0;) logits[changes_[i].id] = changes_[i].raw;
  changes_.clear();
}

}  // namespace penstock::kernels::cpu
