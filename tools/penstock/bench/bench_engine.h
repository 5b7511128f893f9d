// What `penstock bench engine` measures, given a transport to an engine that is ready.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/status.h"
#include "tools/penstock/bench/engine_transport.h"
#include "tools/penstock/bench/options.h"
#include "tools/penstock/bench/report.h"

namespace penstock::bench {

struct EngineBenchOptions {
  std::vector<int> batch_sizes;  // of the latency table
  int input_len = 128;
  int output_len = 129;  // at least 2
  std::vector<BatchShape> prefills;
  std::vector<LoadShape> loads;
  int load_input_len = 1024;
  int load_output_len = 128;
  double request_rate = 0;
  int repeat = 3;
  uint64_t seed = 0;
  int max_num_seqs = 0;  // of the engine; 0: not known
};

class EngineBench {
 public:
  // `transport` must outlive the object. Tables go to standard output unless `quiet`.
  EngineBench(EngineTransport& transport, EngineBenchOptions options, bool quiet)
      : transport_(transport), options_(std::move(options)), quiet_(quiet) {}

  // Runs all that the options ask for, and adds the results to the report: "latency", "prefill",
  // "load".
  absl::Status Run(Json* report);

 private:
  absl::Status RunLatency(Json* report);
  absl::Status RunPrefill(Json* report);
  absl::Status RunLoads(Json* report);

  // All requests of a batch are sent at once; the time until the last has ended.
  absl::StatusOr<LoadResult> RunBatch(int batch_size, int input_len, int output_len);
  absl::StatusOr<LoadResult> RunPrompts(const std::vector<Prompt>& prompts,
                                        const std::vector<double>& arrivals, int max_concurrency,
                                        const std::string& title);
  std::vector<Prompt> Prompts(int count, int input_len, int output_len);
  // Why the engine can't run such a batch at once; empty if it can.
  std::string WhyNotAtOnce(int batch_size, int input_len, int output_len) const;
  void Print(const std::string& text) const;

  EngineTransport& transport_;
  const EngineBenchOptions options_;
  const bool quiet_;
  uint64_t num_datasets_ = 0;  // no prompt comes twice, so that no cache helps
};

}  // namespace penstock::bench
