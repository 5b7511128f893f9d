#include "kernels/reference/reference_sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <set>

namespace penstock::kernels::reference {
namespace {

std::vector<int32_t> ByLikelihood(std::span<const double> values) {
  std::vector<int32_t> ids(values.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(),
                   [&](int32_t a, int32_t b) { return values[a] > values[b]; });
  return ids;
}

void Normalise(std::vector<double>* weights) {
  const double sum = std::accumulate(weights->begin(), weights->end(), 0.0);
  for (double& weight : *weights) weight /= sum;
}

}  // namespace

std::vector<double> Penalised(std::span<const float> logits, const SamplingParams& params,
                              std::span<const int32_t> ids, int32_t prompt_len) {
  std::vector<double> out(logits.begin(), logits.end());
  for (const LogitBias& bias : params.logit_bias) out[bias.token_id] += bias.bias;
  if (static_cast<int64_t>(ids.size()) - prompt_len < params.min_tokens) {
    for (const int32_t id : params.stop_ids) out[id] = -std::numeric_limits<double>::infinity();
  }
  const std::set<int32_t> seen(ids.begin(), ids.end());
  for (const int32_t id : seen) {
    out[id] =
        out[id] > 0 ? out[id] / params.repetition_penalty : out[id] * params.repetition_penalty;
  }
  std::map<int32_t, int> outputs;
  for (const int32_t id : ids.subspan(prompt_len)) ++outputs[id];
  for (const auto& [id, count] : outputs) {
    out[id] -= static_cast<double>(params.frequency_penalty) * count + params.presence_penalty;
  }
  return out;
}

std::vector<double> Distribution(std::span<const double> logits, const SamplingParams& params) {
  const std::vector<int32_t> order = ByLikelihood(logits);
  std::vector<double> weights(logits.size());
  if (params.temperature == 0) {
    weights[order[0]] = 1;
    return weights;
  }
  for (size_t i = 0; i < logits.size(); ++i) {
    weights[i] = std::exp((logits[i] - logits[order[0]]) / params.temperature);
    if (weights[i] < params.min_p) weights[i] = 0;
  }
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < logits.size()) {
    const double least = logits[order[params.top_k - 1]];
    for (size_t i = 0; i < logits.size(); ++i) {
      if (logits[i] < least) weights[i] = 0;
    }
  }
  Normalise(&weights);
  double held = 0;
  for (const int32_t id : order) {
    if (held >= params.top_p) weights[id] = 0;
    held += weights[id];
  }
  Normalise(&weights);
  return weights;
}

int32_t Draw(std::span<const double> distribution, double uniform) {
  double sum = 0;
  int32_t chosen = 0;
  for (size_t i = 0; i < distribution.size(); ++i) {
    if (distribution[i] == 0) continue;
    chosen = static_cast<int32_t>(i);
    sum += distribution[i];
    if (sum > uniform) break;
  }
  return chosen;
}

std::vector<double> LogSoftmax(std::span<const float> logits) {
  const double most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - most);
  std::vector<double> out;
  for (const float logit : logits) out.push_back(logit - most - std::log(sum));
  return out;
}

std::vector<std::pair<int32_t, double>> Ranked(std::span<const double> logprobs) {
  std::vector<std::pair<int32_t, double>> out;
  for (const int32_t id : ByLikelihood(logprobs)) out.emplace_back(id, logprobs[id]);
  return out;
}

}  // namespace penstock::kernels::reference
