#include "kernels/cpu/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/status.h"
#include "kernels/philox.h"

namespace penstock::kernels::cpu {
namespace {

// The `count` greatest of the row with their log-probabilities; of equals the lowest ids, first.
void FillTop(const Kernels& kernels, std::span<const float> logits, int count, double log_total,
             SampledLogprobs* out) {
  const auto n = static_cast<int64_t>(logits.size());
  count = static_cast<int>(std::min<int64_t>(std::min(count, kMaxTopLogprobs), n));
  out->num_top = count;
  if (count == 0) return;
  // Kept in order; what comes later must be greater than the least to get in.
  int found = 0;
  float bound = -std::numeric_limits<float>::infinity();
  constexpr float kAny = std::numeric_limits<float>::infinity();
  for (int64_t i = kernels.next_between(logits.data(), 0, n, bound, kAny); i < n;
       i = kernels.next_between(logits.data(), i + 1, n, bound, kAny)) {
    int at = found < count ? found++ : count - 1;
    for (; at > 0 && logits[out->top_id[at - 1]] < logits[i]; --at) {
      out->top_id[at] = out->top_id[at - 1];
    }
    out->top_id[at] = static_cast<int32_t>(i);
    if (found == count) bound = logits[out->top_id[count - 1]];
  }
  for (int j = 0; j < count; ++j) {
    out->top_logprob[j] = static_cast<float>(logits[out->top_id[j]] - log_total);
  }
}

// 1 + how many are more likely; equals count as more likely if their id is lower.
int32_t RankOf(const Kernels& kernels, std::span<const float> logits, int32_t id) {
  const float logit = logits[id];
  const float below = std::nextafter(logit, -std::numeric_limits<float>::infinity());
  const auto n = static_cast<int64_t>(logits.size());
  return static_cast<int32_t>(1 + kernels.count_above(logits.data(), id, below, nullptr) +
                              kernels.count_above(logits.data() + id, n - id, logit, nullptr));
}

bool IsGreedy(const SamplingParams& params) { return params.temperature < kGreedyTemperature; }

}  // namespace

void Sampler::Reserve(int32_t vocab_size) {
  for (Scratch& scratch : scratch_) {
    scratch.penalties.Reserve(vocab_size);
    scratch.choice.Reserve(vocab_size);
  }
}

int32_t Sampler::SampleRowAt(const SampleParams& p, int32_t i, Scratch* scratch) const {
  const Kernels& kernels = *cpu_.kernels;
  const SampleRow& row = p.rows[i];
  const std::span<float> logits(p.logits + static_cast<int64_t>(i) * p.vocab_size, p.vocab_size);
  const int64_t raw_best = kernels.arg_max(logits.data(), p.vocab_size, /*all_finite=*/true);
  if (raw_best < 0) return -1;

  int32_t id = row.target_id;
  if (id >= p.vocab_size) return -1;
  if (id < 0) {
    const std::span<const int32_t> ids(p.tokens.ids + row.slot * p.tokens.stride, row.position);
    int64_t best = raw_best;
    if (scratch->penalties.Apply(*row.params, ids, row.prompt_len, logits)) {
      best = kernels.arg_max(logits.data(), p.vocab_size, /*all_finite=*/false);
    }
    const bool possible = std::isfinite(logits[best]);
    id = static_cast<int32_t>(best);
    if (possible && !IsGreedy(*row.params)) {
      id = scratch->choice.Draw(kernels, *row.params, logits, best,
                                UniformAt(row.params->seed, row.position));
    }
    scratch->penalties.Restore(logits);
    if (!possible) return -1;
  }
  if (row.num_top >= 0) {
    const float most = logits[raw_best];
    const double log_total = most + std::log(scratch->choice.SumOfExp(kernels, logits, most));
    SampledLogprobs& out = p.logprobs_out[i];
    out.logprob = static_cast<float>(logits[id] - log_total);
    out.rank = RankOf(kernels, logits, id);
    FillTop(kernels, logits, row.num_top, log_total, &out);
  }
  return id;
}

absl::Status Sampler::Sample(const SampleParams& p) {
  const int64_t work = static_cast<int64_t>(p.count) * p.vocab_size;
  ForEach(cpu_, p.count, work, [&](int thread, int64_t i) {
    const SampleRow& row = p.rows[i];
    const int32_t id = SampleRowAt(p, static_cast<int32_t>(i), &scratch_[thread]);
    p.ids_out[i] = id;
    if (row.target_id < 0 && id >= 0) {
      p.tokens.ids[row.slot * p.tokens.stride + row.position] = id;
    }
  });
  const int32_t* bad = std::find(p.ids_out, p.ids_out + p.count, -1);
  if (bad == p.ids_out + p.count) return absl::OkStatus();
  return Internal(
      "row {} (slot {}, position {}) can't be sampled: its logits hold NaN or infinity, or its "
      "masks leave nothing; check the weights and the request's logit_bias",
      bad - p.ids_out, p.rows[bad - p.ids_out].slot, p.rows[bad - p.ids_out].position);
}

}  // namespace penstock::kernels::cpu
