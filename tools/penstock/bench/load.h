// Drives a load through a transport and keeps what every request saw.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "common/status.h"
#include "tools/penstock/bench/dataset.h"
#include "tools/penstock/bench/statistics.h"
#include "tools/penstock/bench/transport.h"

namespace penstock::bench {

struct LoadOptions {
  std::vector<double> arrivals;  // seconds, ascending, one a prompt
  int max_concurrency = 0;       // requests open at once; 0: no limit
  double stall_timeout_s = 300;  // with requests open, nothing for so long ends the benchmark
  // Called a few times a second and at the end: requests ended, tokens so far, seconds so far.
  std::function<void(size_t, int64_t, double)> progress = {};
};

// Times in milliseconds. A request's clock starts when it is sent: time it waited for
// max_concurrency doesn't count (as in `vllm bench serve`).
struct RequestRecord {
  int prompt_tokens = 0;
  int output_tokens = 0;
  double sent_ms = 0;           // since the start of the load
  double ttft_ms = -1;          // < 0: no output came
  double e2e_ms = 0;            // until its last output
  std::vector<double> gaps_ms;  // between outputs that follow each other (ITL)
  absl::Status status;
};

struct LoadResult {
  std::vector<RequestRecord> requests;
  double duration_s = 0;    // from the first request's start to the last one's end
  double client_cpu_s = 0;  // CPU time this process took: the client must not be the bottleneck
  int max_open = 0;         // most requests open at once
};

// DEADLINE_EXCEEDED: stalled. Errors of the transport. Requests that fail stand in the result.
absl::StatusOr<LoadResult> RunLoad(Transport& transport, const std::vector<Prompt>& prompts,
                                   const LoadOptions& options);

// What a load comes to. TPOT is (E2E - TTFT) / (tokens - 1) of requests with two tokens or more.
struct LoadFigures {
  size_t completed = 0;
  size_t failed = 0;
  std::string first_error;  // if any failed
  double duration_s = 0;
  int64_t input_tokens = 0, output_tokens = 0;  // of completed requests
  double requests_per_s = 0, output_tokens_per_s = 0, total_tokens_per_s = 0;
  double client_cpu_share = 0;  // of one core
  int max_open = 0;
  Summary ttft_ms, tpot_ms, itl_ms, e2e_ms;
};

LoadFigures Figures(const LoadResult& result);

}  // namespace penstock::bench
