// How many tokens the next step may have, so that the tokens of running requests come at most
// `target` apart (--target-itl-ms). Pure: no clock, no I/O, and the same calls give the same
// answers. Not thread-safe.
//
// A running request gets a token a step, so its inter-token latency is the time of a step, and that
// is bought with the prompt tokens that ride along: chunked prefill. Sarathi-Serve (Agrawal et al.,
// OSDI 2024) chooses one budget for a target by profiling beforehand; vLLM and SGLang leave a fixed
// number to whoever runs them (max_num_batched_tokens, chunked-prefill-size). SGLang's dynamic
// chunking and Niyama (Goel et al., 2025) predict how long a chunk will take; so does this, from
// the steps as they complete, without a profile of the device.
//
// The time of a step is taken as
//
//   a + b * decodes + (p > 0 ? c + e * p : 0)    for p prompt tokens
//
// where c is there because steps of decodes alone run as captured graphs. The four are followed by
// a Kalman filter (Kalman, 1960): each step moves them by as much as they are uncertain, and each
// step makes them a little more uncertain, so that they follow longer contexts, heat and
// neighbours. What curve there is beside the straight lines is followed in the same way, as it is
// always the neighbourhood of the present budget that is observed. The prediction knows its own
// spread, of what has not been learnt and of steps' own noise; the budget is the largest that is
// two spreads below the target. So it starts small, and grows as fast as it learns, and results
// that come two steps late do no harm: they are compared with what was predicted for them, not with
// the target.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "common/shm/layout.h"

namespace penstock::scheduler {

// What a step computes: rows of one token, and all other tokens.
struct StepShape {
  uint32_t num_decodes = 0;
  uint32_t num_prompt_tokens = 0;

  static StepShape Of(std::span<const shm::PlanRow> rows);
};

class StepBudget {
 public:
  // A step beside decodes may always have so many prompt tokens, also if the target is missed with
  // them or was missed without: prompts must get on. It is a tile of rows of a GPU's matrix
  // products, below which a step hardly gets shorter, as it waits for the weights to be read.
  static constexpr uint32_t kMinPromptTokens = 64;

  // `target_s` seconds; 0: no target, the answer is always `max_tokens`.
  StepBudget(double target_s, uint32_t max_tokens) : target_s_(target_s), max_tokens_(max_tokens) {}

  // A step has taken so long on the device. In the order of the steps.
  void Observe(const StepShape& step, double seconds);

  // Tokens, decodes included, of a step with so many decodes. At most max_tokens, and that if there
  // are none: nobody waits for his next token.
  uint32_t Tokens(uint32_t num_decodes) const;

 private:
  static constexpr int kSize = 4;
  using Vector = std::array<double, kSize>;

  static Vector Features(double num_decodes, double num_prompt_tokens);
  struct Prediction {
    double mean = 0, variance = 0;  // seconds; of the mean, without the step's own noise
    Vector covariance = {};         // with each part
  };

  Prediction Predict(const Vector& features) const;
  void Forget(const Vector& features, double seconds);
  void KeepPositive();

  double target_s_;
  uint32_t max_tokens_;
  bool learnt_ = false;  // from any step
  Vector mean_ = {};     // of a, b, c, e, in seconds a unit of Features
  std::array<Vector, kSize> variance_ = {};
  Vector unknown_ = {};   // variances where nothing is known
  double noise_ = 0.1;    // spread of a step about its prediction, as a share of it
  int num_outliers_ = 0;  // in a row
};

}  // namespace penstock::scheduler
