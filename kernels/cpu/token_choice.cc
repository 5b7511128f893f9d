#include "kernels/cpu/token_choice.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

namespace penstock::kernels::cpu {
namespace {

// Likeliest first, of equals the lowest id. A template, for the type is TokenChoice's own.
constexpr auto Before = [](const auto& a, const auto& b) {
  return a.weight != b.weight ? a.weight > b.weight : a.id < b.id;
};

}  // namespace

void TokenChoice::Reserve(int32_t vocab_size) {
  weights_.resize(vocab_size);
  block_sums_.resize((vocab_size + kSumBlock - 1) / kSumBlock);
  kept_.reserve(vocab_size);
  border_.reserve(vocab_size);
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
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < logits.size()) {
    KeepTopK(kernels, logits, most, params.top_k);
    return DrawFromTopK(params.top_p, uniform);
  }
  if (params.top_p < 1.0f) return DrawFromTopP(kernels, params.top_p * total, uniform);
  return DrawFromAll(uniform * total);
}

// kept_ = the ids whose logit is no less than the k-th greatest, but those of weight 0.
void TokenChoice::KeepTopK(const Kernels& kernels, std::span<const float> logits, float most,
                           int32_t k) {
  const auto n = static_cast<int64_t>(logits.size());
  // A few passes of counting find a bound with not many more than k above it.
  constexpr int kPasses = 16;
  float bound = most - 2;
  float gap = 2;
  for (int i = 0; i < kPasses && kernels.count_above(logits.data(), n, bound, nullptr) < k; ++i) {
    gap *= 1.5f;
    bound = i + 1 < kPasses ? most - gap : -std::numeric_limits<float>::infinity();
  }
  kept_.clear();
  values_.clear();
  constexpr float kAny = std::numeric_limits<float>::infinity();
  for (int64_t i = kernels.next_between(logits.data(), 0, n, bound, kAny); i < n;
       i = kernels.next_between(logits.data(), i + 1, n, bound, kAny)) {
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

// The last candidate of border_, likeliest first, that is needed for `mass`, `above` being held by
// others already. A quickselect by mass: no more is sorted than the last few.
TokenChoice::Candidate TokenChoice::FindCut(double above, double mass) {
  auto begin = border_.begin();
  auto end = border_.end();
  while (end - begin > 32) {
    // The middle of three, so neither side is empty.
    Candidate three[] = {*begin, begin[(end - begin) / 2], *(end - 1)};
    std::sort(three, three + 3, Before);
    const auto middle =
        std::partition(begin, end, [&](const Candidate& c) { return !Before(three[1], c); });
    double held = 0;
    for (auto c = begin; c != middle; ++c) held += c->weight;
    if (above + held >= mass) {
      end = middle;
    } else {
      above += held;
      begin = middle;
    }
  }
  std::sort(begin, end, Before);
  // Rounding may leave the mass a hair out of reach: all stay, then.
  while (begin + 1 != end && (above += begin->weight) < mass) ++begin;
  return *begin;
}

int32_t TokenChoice::DrawFromTopK(float top_p, double uniform) {
  const auto kept_mass = [&] {
    double mass = 0;
    for (const Candidate& c : kept_) mass += c.weight;
    return mass;
  };
  if (top_p < 1.0f) {
    border_ = kept_;
    const Candidate cut = FindCut(0, top_p * kept_mass());
    std::erase_if(kept_, [&](const Candidate& c) { return Before(cut, c); });
  }
  const double target = uniform * kept_mass();
  double sum = 0;
  for (const Candidate& c : kept_) {
    sum += c.weight;
    if (sum > target) return c.id;
  }
  return kept_.back().id;
}

int32_t TokenChoice::DrawFromTopP(const Kernels& kernels, double mass, double uniform) {
  // Passes over the whole row narrow down a range of weights, (low, high], that holds the cut.
  constexpr int64_t kFew = 512;
  const auto n = static_cast<int64_t>(weights_.size());
  float low = 0;
  float high = 1;
  int64_t count_low = n;
  int64_t count_high = 0;
  double above = 0;
  while (count_low - count_high > kFew) {
    const float middle = low == 0 ? high * 0.01f : std::sqrt(low * high);
    if (middle <= low || middle >= high) break;
    double sum;
    const int64_t count = kernels.count_above(weights_.data(), n, middle, &sum);
    if (sum >= mass) {
      low = middle;
      count_low = count;
    } else {
      high = middle;
      count_high = count;
      above = sum;
    }
  }
  border_.clear();
  for (int64_t i = kernels.next_between(weights_.data(), 0, n, low, high); i < n;
       i = kernels.next_between(weights_.data(), i + 1, n, low, high)) {
    border_.push_back({weights_[i], static_cast<int32_t>(i)});
  }
  // Empty if rounding put the mass a hair out of reach: all stay, then.
  float floor = 0;
  if (!border_.empty()) {
    const Candidate cut = FindCut(above, mass);
    for (const Candidate& c : border_) {
      if (Before(cut, c)) weights_[c.id] = 0;
    }
    floor = cut.weight;
  }
  const double total = kernels.drop_below(weights_.data(), n, floor, block_sums_.data());
  return DrawFromAll(uniform * total);
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

}  // namespace penstock::kernels::cpu
