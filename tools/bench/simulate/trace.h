// Streams of requests, made up one by one: a trace of a million takes no memory. The same seed
// gives the same requests, whatever the rate.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace penstock::simulate {

struct TraceSpec {
  std::string name;
  std::string about;
  double prompt_mean, prompt_sigma;  // ids, log-normal; sigma of the logarithm
  double output_mean, output_sigma;
  uint32_t max_tokens;        // every client asks for so many at most; outputs are cut there
  bool bursts = false;        // a tenth of the time at 4x the rate, the rest at 2/3 of it
  uint32_t num_prefixes = 0;  // prompts begin with one of so many, the k-th 1/k as often
  uint32_t prefix_len = 0;    // ids, on top of the prompt
  bool shifts = false;        // after half of the requests outputs are twice as long
  uint32_t num_tenants = 1;   // they send alike, but that
  uint32_t flood = 1;         // the first sends so many times as much, on top of the load
  bool one_queue = false;     // the scheduler is not told who is who
};

// What the simulator knows.
std::span<const TraceSpec> Traces();

struct TraceItem {
  double gap = 0;  // since the one before, in units of the mean gap
  uint32_t prompt_len = 0;
  uint32_t output_len = 0;  // it stops with so many
  uint32_t prefix = 0;      // 0: none, else a number
  uint32_t prefix_len = 0;  // of prompt_len
  uint32_t tenant = 0;
};

class Trace {
 public:
  Trace(const TraceSpec& spec, uint64_t seed, uint64_t num_requests, uint32_t max_model_len);
  TraceItem Next();

 private:
  uint32_t Draw(double mean, double sigma);
  double Gap();

  TraceSpec spec_;
  uint64_t num_requests_, num_drawn_ = 0;
  uint32_t max_model_len_;
  std::mt19937_64 random_;
  std::vector<double> prefix_weights_;  // cumulated
  double clock_ = 0;                    // in mean gaps
};

}  // namespace penstock::simulate
