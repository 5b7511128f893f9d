// How a benchmark reaches what it measures: an engine's wire, gRPC or HTTP. One thread drives it.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

#include "common/status.h"
#include "tools/penstock/bench/dataset.h"

namespace penstock::bench {

using Clock = std::chrono::steady_clock;

// Something that came for a request. The last event of a request, and no other, has `end`.
struct Event {
  size_t request = 0;  // as given to Start
  Clock::time_point at;
  int num_tokens = 0;  // 0: the server doesn't say in each message; `total_tokens` does at the end
  bool has_output = false;  // it brought output, so it counts for TTFT and ITL
  bool end = false;
  int total_tokens = -1;   // with `end`: output tokens of the request; -1: add up num_tokens
  int prompt_tokens = -1;  // with `end`, where the server says so
  absl::Status error;      // with `end`: the request failed
};

class Transport {
 public:
  virtual ~Transport() = default;

  // Begins a request: greedy, `prompt.output_len` tokens, end-of-sequence ids ignored unless the
  // transport was made otherwise. It may go out with the next Poll. An error ends the benchmark;
  // what concerns one request alone comes as an event.
  virtual absl::Status Start(size_t request, const Prompt& prompt) = 0;

  // Waits until something comes or until `deadline`, and appends what came. An error ends the
  // benchmark: the engine or server is gone.
  virtual absl::Status Poll(Clock::time_point deadline, std::vector<Event>* events) = 0;
};

}  // namespace penstock::bench
