// Sampling as a literal reading of kernels/sampling_params.h: full sorts, double precision.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels/sampling_params.h"

namespace penstock::kernels::reference {

// The logits after bias, min_tokens mask and penalties.
std::vector<double> Penalised(std::span<const float> logits, const SamplingParams& params,
                              std::span<const int32_t> ids, int32_t prompt_len);

// The probability of every id after temperature, min-p, top-k and top-p; one of 1 if greedy.
std::vector<double> Distribution(std::span<const double> logits, const SamplingParams& params);

// The id that `uniform` falls on.
int32_t Draw(std::span<const double> distribution, double uniform);

std::vector<double> LogSoftmax(std::span<const float> logits);

// (id, log-probability), likeliest first, of equals the lowest id first.
std::vector<std::pair<int32_t, double>> Ranked(std::span<const double> logprobs);

}  // namespace penstock::kernels::reference
