// What a benchmark asks for: prompts of random token ids, and when each request is sent. All
// follows from the seed: the same options give the same load.
#pragma once

#include <cstdint>
#include <vector>

namespace penstock::bench {

struct Prompt {
  std::vector<int32_t> ids;
  int output_len = 0;
};

struct DatasetOptions {
  int num_prompts = 0;
  int input_len = 0;   // ids of a prompt that are its own
  int output_len = 0;  // ids asked for
  // Lengths are drawn evenly from (1 - range_ratio) to (1 + range_ratio) times the above; 0: exact.
  double range_ratio = 0;
  int prefix_len = 0;    // ids before them that prompts share
  int num_prefixes = 1;  // prompt i begins with prefix i % num_prefixes
  int vocab_size = 0;    // ids are below it
  uint64_t seed = 0;
};

std::vector<Prompt> MakePrompts(const DatasetOptions& options);

// When each of `count` requests is sent, in seconds from the start, ascending. `rate` is requests a
// second: infinite means all at 0; else a Poisson process, stretched to last count / rate exactly
// so that seeds don't differ in load (the method of `vllm bench serve`).
std::vector<double> ArrivalTimes(int count, double rate, uint64_t seed);

}  // namespace penstock::bench
