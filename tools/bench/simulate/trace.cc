#include "tools/bench/simulate/trace.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace penstock::simulate {
namespace {

// Bursts come every kPeriod mean gaps and last a tenth of it.
constexpr double kPeriod = 400, kBurst = 0.1 * kPeriod, kBurstRate = 4, kQuietRate = 2.0 / 3;

}  // namespace

std::span<const TraceSpec> Traces() {
  static const std::array<TraceSpec, 9> traces = {{
      {"chat", "Poisson; prompts of 500, outputs of 800 of at most 4096", 500, 0.8, 800, 0.7, 4096},
      {"bursts", "the same in bursts", 500, 0.8, 800, 0.7, 4096, true},
      {"long-tail", "outputs of 1000, a few of 8192: sigma 1.4", 300, 0.8, 1000, 1.4, 8192},
      {"prefixes", "chat behind 1 of 64 system prompts of 1024 ids", 200, 0.8, 800, 0.7, 4096,
       false, 64, 1024},
      {"shift", "outputs of 500, then of 1000", 500, 0.8, 500, 0.7, 4096, false, 0, 0, true},
      {"documents", "prompts of 3000, outputs of 300", 3000, 0.8, 300, 0.7, 2048},
      {"tenants", "chat of 10 tenants; figures of all but the first", 500, 0.8, 800, 0.7, 4096,
       false, 0, 0, false, 10},
      {"flood", "the first sends 10x as much; figures of the others", 500, 0.8, 800, 0.7, 4096,
       false, 0, 0, false, 10, 10},
      {"flood-fifo", "the same, all taken for one tenant", 500, 0.8, 800, 0.7, 4096, false, 0, 0,
       false, 10, 10, true},
  }};
  return traces;
}

Trace::Trace(const TraceSpec& spec, uint64_t seed, uint64_t num_requests, uint32_t max_model_len)
    : spec_(spec), num_requests_(num_requests), max_model_len_(max_model_len), random_(seed) {
  for (uint32_t k = 1; k <= spec.num_prefixes; ++k) {
    prefix_weights_.push_back((prefix_weights_.empty() ? 0 : prefix_weights_.back()) + 1.0 / k);
  }
}

uint32_t Trace::Draw(double mean, double sigma) {
  std::lognormal_distribution<double> draw(std::log(mean) - sigma * sigma / 2, sigma);
  return static_cast<uint32_t>(std::clamp(draw(random_), 1.0, 1e6));
}

// A Poisson process, its rate changing with the time.
double Trace::Gap() {
  double work = std::exponential_distribution<double>()(random_);
  if (!spec_.bursts) return work;
  const double begin = clock_;
  for (;;) {
    const double at = std::fmod(clock_, kPeriod);
    const bool burst = at < kBurst;
    const double rate = burst ? kBurstRate : kQuietRate;
    const double left = (burst ? kBurst : kPeriod) - at;
    if (work <= left * rate) {
      clock_ += work / rate;
      return clock_ - begin;
    }
    work -= left * rate;
    clock_ += left + 1e-9;  // rounding must not leave it where it was
  }
}

TraceItem Trace::Next() {
  TraceItem item;
  const double work = spec_.num_tenants - 1.0 + spec_.flood;
  item.gap = Gap() * spec_.num_tenants / work;
  if (spec_.num_tenants > 1) {
    const double draw = std::uniform_real_distribution<double>(0, work)(random_);
    item.tenant = static_cast<uint32_t>(std::max(0.0, draw - spec_.flood + 1));
  }
  const bool late = spec_.shifts && num_drawn_++ >= num_requests_ / 2;
  item.prompt_len = Draw(spec_.prompt_mean, spec_.prompt_sigma);
  item.output_len =
      std::min(spec_.max_tokens, Draw(spec_.output_mean * (late ? 2 : 1), spec_.output_sigma));
  if (!prefix_weights_.empty()) {
    const double draw = std::uniform_real_distribution<double>(0, prefix_weights_.back())(random_);
    const auto found = std::upper_bound(prefix_weights_.begin(), prefix_weights_.end(), draw);
    item.prefix = static_cast<uint32_t>(found - prefix_weights_.begin()) + 1;
    item.prefix_len = spec_.prefix_len;
  }
  item.prompt_len = std::min(item.prompt_len + item.prefix_len, max_model_len_ / 2);
  return item;
}

}  // namespace penstock::simulate
