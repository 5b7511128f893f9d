#include "tools/bench/simulate/policies.h"

#include <algorithm>
#include <array>
#include <memory>

namespace penstock::simulate {
namespace {

using scheduler::Admission;
using scheduler::Batch;

// LightLLM's assumption (as of 2026-08): a moving average of output lengths that begins at 2048,
// its step falling from 0.5 to 0.04; 1.1x what there is, if that is more; and max_tokens as soon as
// 85% of the memory is in use.
class MovingAverage : public scheduler::LengthEstimate {
 public:
  void Observe(uint32_t length) override {
    average_ += step_ * (std::max(64.0, static_cast<double>(length)) - average_);
    step_ = std::max(0.04, 0.8 * step_);
  }
  uint32_t Expect(uint32_t generated, uint32_t max_tokens, uint32_t) const override {
    if (busy_) return max_tokens;
    const double length = std::max({1.1 * generated, average_, generated + 1.0});
    return static_cast<uint32_t>(std::min<double>(max_tokens, length));
  }
  void set_busy(bool busy) { busy_ = busy; }

 private:
  double average_ = 2048, step_ = 0.5;
  bool busy_ = false;
};

std::function<void(double)> UseReserve(Batch& batch) {
  batch.UseAdmission(Admission::kReserve, std::make_unique<scheduler::WindowEstimate>(), 0);
  return {};
}

std::function<void(double)> UseWatermark(Batch& batch) {
  batch.UseAdmission(Admission::kWatermark, std::make_unique<scheduler::WindowEstimate>(), 0.01);
  return {};
}

std::function<void(double)> UseLightLlm(Batch& batch) {
  auto lengths = std::make_unique<MovingAverage>();
  MovingAverage* average = lengths.get();
  batch.UseAdmission(Admission::kLookAhead, std::move(lengths), 0);
  return [average](double page_use) { average->set_busy(page_use >= 0.85); };
}

}  // namespace

std::span<const PolicySpec> Policies() {
  static const std::array<PolicySpec, 4> policies = {{
      {"reserve", "FIFO, everybody's max_tokens reserved", UseReserve},
      {"watermark", "FIFO without look ahead, 1% kept free", UseWatermark},
      {"lightllm", "look ahead with LightLLM's constants", UseLightLlm},
      {"look-ahead", "Penstock's", [](Batch&) { return std::function<void(double)>(); }},
  }};
  return policies;
}

}  // namespace penstock::simulate
