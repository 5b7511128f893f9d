#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/simd/kernels.h"
#include "kernels/sampling_params.h"

namespace penstock::kernels::cpu {

// Draws an id from a row of logits. Pure but for its scratch: the same logits, parameters and
// number give the same id. One thread at a time.
class TokenChoice {
 public:
  // Afterwards Draw allocates nothing for rows of up to vocab_size logits.
  void Reserve(int32_t vocab_size);

  // The id that `uniform` in [0, 1) falls on, in the order of ids, after temperature (> 0), min-p,
  // top-k and top-p. Of top-k's last equals all stay. Top-p keeps, from the likeliest down and of
  // equals from the lowest id up, the fewest ids that hold top_p of what top-k left; at least one.
  // `best` is the index of the greatest logit, which is finite.
  int32_t Draw(const Kernels& kernels, const SamplingParams& params, std::span<const float> logits,
               int64_t best, double uniform);

  // e^(logit - shift) of the whole row summed; for log-probabilities.
  double SumOfExp(const Kernels& kernels, std::span<const float> logits, float shift);

 private:
  struct Candidate {
    float weight;
    int32_t id;
  };

  void KeepTopK(const Kernels& kernels, std::span<const float> logits, float most, int32_t k);
  int32_t DrawFromTopK(float top_p, double uniform);
  int32_t DrawFromTopP(const Kernels& kernels, double mass, double uniform);
  Candidate FindCut(double above, double mass);
  int32_t DrawFromAll(double target) const;

  std::vector<float> weights_;      // of every id, relative to the likeliest
  std::vector<double> block_sums_;  // of weights_, by kSumBlock
  std::vector<Candidate> kept_;     // what top-k left, by id
  std::vector<Candidate> border_;   // scratch of FindCut
  std::vector<float> values_;       // scratch of KeepTopK
};

}  // namespace penstock::kernels::cpu
