// What a generation has to say, in the terms both APIs share.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "common/status.h"

namespace penstock::router {

struct TokenLogprob {
  int32_t id;
  float logprob;
  int32_t rank;  // 1: the most likely
  std::vector<std::pair<int32_t, float>> top;
};

enum class Finish { kNone, kStop, kLength };

struct Usage {
  int32_t completion_tokens = 0;  // of all choices
  int32_t cached_tokens = 0;      // of the prompt: those that no choice has computed
};

// What came of a choice since its last one was taken. Its last output has `finish`. A failure ends
// all choices and comes by itself.
struct Output {
  int choice = 0;
  std::string text;
  std::vector<int32_t> ids;
  std::vector<TokenLogprob> logprobs;         // of ids, if asked for
  std::vector<TokenLogprob> prompt_logprobs;  // of prompt ids 1, 2, ...; in the first, if asked for
  Finish finish = Finish::kNone;
  std::string stop_string;     // that ended it; empty if none did
  int32_t stop_token_id = -1;  // the user's stop id that ended it; -1 if none did
  absl::Status failure;
  // Of this choice, as of this output.
  int32_t num_tokens = 0;
  int32_t cached_tokens = 0;
  double sum_logprob = 0;  // of its tokens, if the engine was asked for log-probabilities
  // Of all choices, as of this output: set when it is taken.
  Usage usage;
  bool last = false;  // the generation says nothing after it
};

// best_of: keeps the n whole choices whose tokens have the highest mean log-probability, best
// first, and numbers them anew.
void KeepBest(int n, std::vector<Output>* choices);

// Told when there is output to take.
class OutputListener {
 public:
  virtual ~OutputListener() = default;
  // On an engine's receive thread: must not block. Take may be called here or later, elsewhere.
  virtual void OnOutputReady() = 0;
};

}  // namespace penstock::router
