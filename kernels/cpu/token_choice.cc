#include "kernels/cpu/token_choice.h"

#include <algorithm>
#include <functional>
#include <limits>

namespace penstock::kernels::cpu {

void TokenChoice::Reserve(int32_t vocab_size) {
  weights_.resize(vocab_size);
  block_sums_.resize((vocab_size + kSumBlock - 1) / kSumBlock);
  kept_.reserve(vocab_size);
  sorted_.reserve(vocab_size);
  values_.reserve(vocab_size);
}

double TokenChoice::SumOfExp(const Kernels& kernels, std::span<const float> logits, float shift) {
  if (weights_.size() < logits.size()) Reserve(static_cast<int32_t>(logits.size()));
  return kernels.exp_sum(logits.data(), static_cast<int64_t>(logits.size()), shift, 1.0f, 0.0f,
                         weights_.data(), block_sums_.data());
}

int32_t TokenChoice::Draw(const Kernels& kernels, const SamplingParams& params,
                          std::span<const float> logits, int64_t best, double uniform) {
  weights_.resize(logits.size());
  block_sums_.resize((logits.size() + kSumBlock - 1) / kSumBlock);
  const float most = logits[best];
  const double total =
      kernels.exp_sum(logits.data(), static_cast<int64_t>(logits.size()), most,
                      1.0f / params.temperature, params.min_p, weights_.data(), block_sums_.data());
  const bool top_k = params.top_k > 0 && static_cast<size_t>(params.top_k) < logits.size();
  const bool top_p = params.top_p < 1.0f;
  if (!top_k && !top_p) return DrawFromAll(uniform * total);
  if (top_k) {
    KeepTopK(kernels, logits, most, params.top_k);
    double mass = 0;
    for (const Candidate& c : kept_) mass += c.weight;
    if (top_p) CutToMass(params.top_p * mass);
  } else {
    KeepMass(kernels, params.top_p * total);
    CutToMass(params.top_p * total);
  }
  return DrawFromKept(uniform);
}

// kept_ = the ids whose logit is no less than the k-th greatest, but those of weight 0.
void TokenChoice::KeepTopK(const Kernels& kernels, std::span<const float> logits, float most,
                           int32_t k) {
  const auto n = static_cast<int64_t>(logits.size());
  // A few passes of counting find a bound with not many more than k above it.
  float bound = -std::numeric_limits<float>::infinity();
  for (float gap = 2; gap < 1e4f; gap *= 1.5f) {
    if (kernels.count_above(logits.data(), n, most - gap) >= k) {
      bound = most - gap;
      break;
    }
  }
  kept_.clear();
  values_.clear();
  for (int64_t i = kernels.next_above(logits.data(), 0, n, bound); i < n;
       i = kernels.next_above(logits.data(), i + 1, n, bound)) {
    kept_.push_back({weights_[i], static_cast<int32_t>(i)});
    values_.push_back(logits[i]);
  }
  float least = bound;
  if (values_.size() > static_cast<size_t>(k)) {
    std::nth_element(values_.begin(), values_.begin() + (k - 1), values_.end(), std::greater<>());
    least = values_[k - 1];
  }
  std::erase_if(kept_, [&](const Candidate& c) { return c.weight == 0 || logits[c.id] < least; });
}

// kept_ = the ids of weight above a bound, chosen so that they hold at least `mass`.
void TokenChoice::KeepMass(const Kernels& kernels, double mass) {
  const auto n = static_cast<int64_t>(weights_.size());
  float bound = 0;
  for (const float candidate : {1e-2f, 1e-3f, 1e-4f, 1e-5f}) {
    if (kernels.sum_above(weights_.data(), n, candidate) >= mass) {
      bound = candidate;
      break;
    }
  }
  kept_.clear();
  for (int64_t i = kernels.next_above(weights_.data(), 0, n, bound); i < n;
       i = kernels.next_above(weights_.data(), i + 1, n, bound)) {
    kept_.push_back({weights_[i], static_cast<int32_t>(i)});
  }
}

// Drops from kept_ what top-p drops. A quickselect by mass: no more is sorted than the last few.
void TokenChoice::CutToMass(double mass) {
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.weight != b.weight ? a.weight > b.weight : a.id < b.id;
  };
  sorted_ = kept_;
  auto begin = sorted_.begin();
  auto end = sorted_.end();
  double above = 0;  // held by those before `begin`
  while (end - begin > 32) {
    // The middle of three, so neither side is empty.
    Candidate three[] = {*begin, begin[(end - begin) / 2], *(end - 1)};
    std::sort(three, three + 3, before);
    const auto middle =
        std::partition(begin, end, [&](const Candidate& c) { return !before(three[1], c); });
    double held = 0;
    for (auto c = begin; c != middle; ++c) held += c->weight;
    if (above + held >= mass) {
      end = middle;
    } else {
      above += held;
      begin = middle;
    }
  }
  std::sort(begin, end, before);
  auto last = begin;
  while (last != end && (above += last->weight) < mass) ++last;
  // Rounding may leave the mass a hair out of reach: all stay, then.
  if (last == end) return;
  const Candidate cut = *last;
  std::erase_if(kept_, [&](const Candidate& c) { return before(cut, c); });
}

int32_t TokenChoice::DrawFromAll(double target) const {
  const auto n = static_cast<int64_t>(weights_.size());
  size_t last_block = block_sums_.size() - 1;
  while (last_block > 0 && block_sums_[last_block] == 0) --last_block;
  double sum = 0;
  size_t block = 0;
  while (block < last_block && sum + block_sums_[block] <= target) sum += block_sums_[block++];
  // A block's sum and its walk differ by rounding: its last id takes what is over.
  int32_t chosen = -1;
  const int64_t begin = static_cast<int64_t>(block) * kSumBlock;
  for (int64_t i = begin; i < std::min(n, begin + kSumBlock) && sum <= target; ++i) {
    if (weights_[i] == 0) continue;
    sum += weights_[i];
    chosen = static_cast<int32_t>(i);
  }
  return chosen;
}

int32_t TokenChoice::DrawFromKept(double uniform) const {
  double mass = 0;
  for (const Candidate& c : kept_) mass += c.weight;
  const double target = uniform * mass;
  double sum = 0;
  for (const Candidate& c : kept_) {
    sum += c.weight;
    if (sum > target) return c.id;
  }
  return kept_.back().id;
}

}  // namespace penstock::kernels::cpu
