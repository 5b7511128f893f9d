#include <bit>

#include "common/status.h"
#include "kernels/cuda/sampler.h"

namespace penstock::kernels::cuda {
namespace {

// Stop ids matter to a row only while it has fewer than min_tokens.
std::span<const int32_t> MaskedIds(const SampleRow& row) {
  const bool masks = row.position - row.prompt_len < row.params->min_tokens;
  return masks ? row.params->stop_ids : std::span<const int32_t>();
}

DeviceSampleRow PackScalars(const SampleRow& row) {
  const SamplingParams& params = *row.params;
  return {.slot = row.slot,
          .position = row.position,
          .prompt_len = row.prompt_len,
          .target_id = row.target_id,
          .num_top = row.num_top,
          .top_k = params.top_k,
          .temperature = params.temperature,
          .top_p = params.top_p,
          .min_p = params.min_p,
          .repetition_penalty = params.repetition_penalty,
          .presence_penalty = params.presence_penalty,
          .frequency_penalty = params.frequency_penalty,
          .seed = params.seed};
}

}  // namespace

absl::StatusOr<int32_t> PackSampleRows(std::span<const SampleRow> rows,
                                       std::span<DeviceSampleRow> out, std::span<int32_t> side) {
  size_t needed = 0;
  for (const SampleRow& row : rows) {
    if (row.target_id >= 0) continue;
    needed += MaskedIds(row).size() + 2 * row.params->logit_bias.size();
  }
  if (needed > side.size() || rows.size() > out.size()) {
    return ResourceExhausted(
        "{} rows with {} words of stop ids and biases don't fit the {} rows and {} words staged "
        "for",
        rows.size(), needed, out.size(), side.size());
  }
  int32_t used = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    out[i] = PackScalars(rows[i]);
    if (rows[i].target_id >= 0) continue;  // nothing is sampled
    out[i].stop_begin = used;
    for (const int32_t id : MaskedIds(rows[i])) side[used++] = id;
    out[i].stop_count = used - out[i].stop_begin;
    out[i].bias_begin = used;
    out[i].bias_count = static_cast<int32_t>(rows[i].params->logit_bias.size());
    for (const LogitBias& bias : rows[i].params->logit_bias) {
      side[used++] = bias.token_id;
      side[used++] = std::bit_cast<int32_t>(bias.bias);
    }
  }
  for (size_t i = rows.size(); i < out.size(); ++i) out[i] = {};
  return used;
}

}  // namespace penstock::kernels::cuda
