#include "scheduler/step_budget.h"

#include <algorithm>
#include <cmath>

namespace penstock::scheduler {
namespace {

// Features are counted in these, so that each is of the size of the others and what the first steps
// show is shared out sensibly between them.
constexpr double kUnit = 64;
// The largest budget is a multiple of it, counting decodes: one token more would have a GPU compute
// a tile of rows more (tile quantisation: Sarathi-Serve, section 4.3). And a budget that moves in
// steps stays where it is as long as little changes.
constexpr uint32_t kTile = 64;

constexpr double kSpreads = 2;    // between the prediction and the target: 2% of steps are above
constexpr double kGate = 4;       // a step that is so many spreads off was disturbed
constexpr int kMaxOutliers = 3;   // in a row: it is the device that has changed
constexpr double kDrift = 0.005;  // by which share of a step's time each part may change a step
constexpr double kNoiseGain = 0.05;
constexpr double kMinNoise = 0.01, kMaxNoise = 0.25;

}  // namespace

StepShape StepShape::Of(std::span<const shm::PlanRow> rows) {
  StepShape shape;
  for (const shm::PlanRow& row : rows) {
    if (row.num_tokens == 1) {
      ++shape.num_decodes;
    } else {
      shape.num_prompt_tokens += row.num_tokens;
    }
  }
  return shape;
}

StepBudget::Vector StepBudget::Features(double num_decodes, double num_prompt_tokens) {
  return {1, num_decodes / kUnit, num_prompt_tokens > 0 ? 1.0 : 0.0, num_prompt_tokens / kUnit};
}

// Nothing is known, but that any part may be all of what this step took.
void StepBudget::Forget(const Vector& features, double seconds) {
  mean_.fill(0);
  for (int i = 0; i < kSize; ++i) {
    const double part = seconds / std::max(features[i], 1.0);
    unknown_[i] = part * part;
    variance_[i].fill(0);
    variance_[i][i] = unknown_[i];
  }
  num_outliers_ = 0;
  learnt_ = true;
}

StepBudget::Prediction StepBudget::Predict(const Vector& features) const {
  Prediction prediction;
  for (int i = 0; i < kSize; ++i) {
    for (int j = 0; j < kSize; ++j) prediction.covariance[i] += variance_[i][j] * features[j];
    prediction.mean += mean_[i] * features[i];
    prediction.variance += prediction.covariance[i] * features[i];
  }
  return prediction;
}

void StepBudget::Observe(const StepShape& step, double seconds) {
  if (target_s_ == 0 || seconds <= 0 || step.num_decodes + step.num_prompt_tokens == 0) return;
  const Vector features = Features(step.num_decodes, step.num_prompt_tokens);
  if (!learnt_) Forget(features, seconds);
  Prediction predicted = Predict(features);
  const double noise2 = noise_ * noise_ * seconds * seconds;
  const double error = seconds - predicted.mean;
  const double surprise = std::min(error * error / (predicted.variance + noise2), kGate * kGate);
  noise_ = std::clamp(noise_ * std::sqrt(1 + kNoiseGain * (surprise - 1)), kMinNoise, kMaxNoise);
  if (surprise < kGate * kGate) {
    num_outliers_ = 0;
  } else {
    if (++num_outliers_ < kMaxOutliers) return;
    Forget(features, seconds);
    predicted = Predict(features);
  }
  const double gain = 1 / (predicted.variance + noise2);
  for (int i = 0; i < kSize; ++i) {
    mean_[i] += gain * predicted.covariance[i] * (seconds - predicted.mean);
    for (int j = 0; j < kSize; ++j) {
      variance_[i][j] -= gain * predicted.covariance[i] * predicted.covariance[j];
    }
    const double drift = kDrift * seconds / std::max(features[i], 1.0);
    if (variance_[i][i] < unknown_[i]) variance_[i][i] += drift * drift;
  }
  KeepPositive();
}

// No part of the time is negative: where one has become so, it is taken to be 0, and what follows
// from that for the others (of most only sums are known) is applied to them.
void StepBudget::KeepPositive() {
  auto variance = variance_;  // given that those are 0
  for (int pass = 0; pass < kSize; ++pass) {
    const int least =
        static_cast<int>(std::min_element(mean_.begin(), mean_.end()) - mean_.begin());
    if (mean_[least] >= 0 || variance[least][least] <= 0) break;
    const Vector column = variance[least];
    const double lift = -mean_[least] / column[least];
    for (int i = 0; i < kSize; ++i) {
      mean_[i] += lift * column[i];
      for (int j = 0; j < kSize; ++j) variance[i][j] -= column[i] * column[j] / column[least];
    }
    mean_[least] = 0;
  }
  for (double& part : mean_) part = std::max(part, 0.0);
}

uint32_t StepBudget::Tokens(uint32_t num_decodes) const {
  if (target_s_ == 0 || num_decodes == 0) return max_tokens_;
  const uint32_t least = std::min(max_tokens_, num_decodes + kMinPromptTokens);
  if (!learnt_) return least;
  // Mean and variance of the prediction as polynomials of the prompt tokens, in kUnit.
  const Vector at_zero = {1, num_decodes / kUnit, 1, 0};
  double mean = 0, constant = 0, linear = 0;
  for (int i = 0; i < kSize; ++i) {
    mean += mean_[i] * at_zero[i];
    linear += 2 * variance_[i][3] * at_zero[i];
    for (int j = 0; j < kSize; ++j) constant += variance_[i][j] * at_zero[i] * at_zero[j];
  }
  double best = 0;  // prompt tokens
  for (uint32_t tokens = max_tokens_;; tokens = std::max(least, (tokens - 1) / kTile * kTile)) {
    const double p = (tokens - num_decodes) / kUnit;
    const double predicted = mean + mean_[3] * p;
    const double noise = noise_ * predicted;
    const double spread2 = constant + linear * p + variance_[3][3] * p * p + noise * noise;
    const double high = predicted + kSpreads * std::sqrt(std::max(0.0, spread2));
    // No part of the time is negative: k times the prompt tokens take at most k times as long. So
    // little known is enough to go on from.
    if (high <= target_s_) best = std::max(best, kUnit * p * target_s_ / high);
    if (tokens == least) break;
  }
  const double tokens = std::min<double>(max_tokens_, num_decodes + best);
  if (tokens == max_tokens_) return max_tokens_;
  return std::max(least, static_cast<uint32_t>(tokens) / kTile * kTile);
}

}  // namespace penstock::scheduler
