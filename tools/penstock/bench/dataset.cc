#include "tools/penstock/bench/dataset.h"

#include <algorithm>
#include <cmath>
#include <random>

namespace penstock::bench {
namespace {

// The standard library's distributions differ between implementations; these don't.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  // 0 <= result < bound; the bias of the remainder is below 2^-32 for bounds below 2^32.
  uint64_t Below(uint64_t bound) { return engine_() % bound; }
  // Exponentially distributed, mean 1.
  double Exponential() {
    const double uniform = static_cast<double>(engine_() >> 11) * 0x1p-53;  // [0, 1)
    return -std::log1p(-uniform);
  }

 private:
  std::mt19937_64 engine_;
};

int DrawLength(int length, double range_ratio, Random& random) {
  const int low = std::max(1, static_cast<int>(std::floor(length * (1 - range_ratio))));
  const int high = std::max(low, static_cast<int>(std::ceil(length * (1 + range_ratio))));
  return low + static_cast<int>(random.Below(static_cast<uint64_t>(high - low) + 1));
}

void AppendIds(int count, int vocab_size, Random& random, std::vector<int32_t>* ids) {
  for (int i = 0; i < count; ++i) {
    ids->push_back(static_cast<int32_t>(random.Below(static_cast<uint64_t>(vocab_size))));
  }
}

}  // namespace

std::vector<Prompt> MakePrompts(const DatasetOptions& options) {
  Random random(options.seed);
  std::vector<std::vector<int32_t>> prefixes(std::max(1, options.num_prefixes));
  for (auto& prefix : prefixes) {
    AppendIds(options.prefix_len, options.vocab_size, random, &prefix);
  }
  std::vector<Prompt> prompts(options.num_prompts);
  for (size_t i = 0; i < prompts.size(); ++i) {
    prompts[i].ids = prefixes[i % prefixes.size()];
    AppendIds(DrawLength(options.input_len, options.range_ratio, random), options.vocab_size,
              random, &prompts[i].ids);
    prompts[i].output_len = DrawLength(options.output_len, options.range_ratio, random);
  }
  return prompts;
}

std::vector<double> ArrivalTimes(int count, double rate, uint64_t seed) {
  std::vector<double> times(count, 0.0);
  if (std::isinf(rate) || count == 0) return times;
  Random random(seed);
  double now = 0;
  for (double& time : times) time = now += random.Exponential();
  const double stretch = count / rate / now;
  for (double& time : times) time *= stretch;
  return times;
}

}  // namespace penstock::bench
