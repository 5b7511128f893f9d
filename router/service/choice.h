// One choice of a generation: what its ids become. Not thread-safe: it belongs to the receive
// thread of the engine that has it.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include "router/engine/open_request.h"
#include "router/request/validate.h"
#include "router/service/metrics.h"
#include "router/service/output.h"
#include "router/stream/text_stream.h"
#include "router/tokenizer/tokenizer.h"

namespace penstock::router {

class Choice {
 public:
  // All outlive it.
  Choice(int index, const GenerationRequest& request, const std::vector<int32_t>& prompt_ids,
         const Tokenizer& tokenizer, Metrics& metrics);

  // The output of ids [begin, begin + count) of the delta. It has `finish` if they end the choice;
  // the engine need not know of that yet (a stop string).
  Output Advance(const TokenDelta& delta, size_t begin, size_t count);

 private:
  using Clock = std::chrono::steady_clock;

  void SetFinish(const TokenDelta& delta, Output* output);
  void AddLogprobs(const TokenDelta& delta, size_t begin, std::span<const int32_t> ids,
                   Output* output);
  void CountTokens(Clock::time_point now, size_t count);
  void CountEnd(const Output& output);

  const int index_;
  const GenerationRequest& request_;
  const std::vector<int32_t>& prompt_ids_;
  const Tokenizer& tokenizer_;
  Metrics& metrics_;
  TextStream text_;
  Clock::time_point first_token_;
  Clock::time_point last_token_;
  int32_t num_tokens_ = 0;
  int32_t cached_tokens_ = 0;
  double sum_logprob_ = 0;
};

}  // namespace penstock::router
