#include "tools/bench/simulate/run.h"

#include <chrono>
#include <limits>

namespace penstock::simulate {
namespace {

constexpr size_t kSaturated = 64;  // requests that wait at least

class Run {
 public:
  Run(const DeviceModel& device, const EngineConfig& config, const RunSpec& spec)
      : spec_(spec),
        engine_(device, config, spec.policy->set_up),
        trace_(*spec.trace, spec.seed, spec.num_requests, device.max_model_len()),
        first_(spec.num_requests / 5),
        end_(spec.num_requests - spec.num_requests / 20) {
    DrawNext();
  }

  RunFigures Finish() {
    while (Advance()) {
    }
    figures_.ttft_s = bench::Summarise(std::move(ttfts_));
    figures_.tpot_s = bench::Summarise(std::move(tpots_));
    const double window_s = end_s_ - begin_s_;
    const auto num_came = static_cast<double>(num_measured_);
    figures_.requests_per_s = num_ended_ / window_s;
    figures_.goodput = num_good_ / window_s;
    figures_.good_share = num_good_ / num_came;
    figures_.preempted_share = num_preempted_ / num_came;
    figures_.page_use = use_ / window_s;
    figures_.mean_running = running_ / window_s;
    const scheduler::PrefixStats& stats = engine_.prefix_stats();
    if (stats.queries > 0) {
      figures_.cached_share = static_cast<double>(stats.hits) / static_cast<double>(stats.queries);
    }
    figures_.num_requests = spec_.num_requests;
    figures_.num_preemptions = engine_.num_preemptions();
    figures_.num_steps = engine_.num_steps();
    figures_.simulated_s = now_s_;
    return figures_;
  }

 private:
  static constexpr double kNever = std::numeric_limits<double>::infinity();

  void DrawNext() {
    if (num_drawn_ == spec_.num_requests) {
      arrival_s_ = kNever;
      return;
    }
    next_ = trace_.Next();
    ++num_drawn_;
    if (spec_.rate > 0) arrival_s_ += next_.gap / spec_.rate;
  }

  bool InWindow() const { return num_arrived_ > first_ && num_arrived_ < end_; }

  // To the next event; false after the last one.
  bool Advance() {
    const double completion_s = engine_.NextCompletion();
    const bool saturate = spec_.rate == 0 && arrival_s_ != kNever;
    if (saturate && engine_.num_waiting() < kSaturated) {
      Arrive();
      if (engine_.num_waiting() == kSaturated || arrival_s_ == kNever) engine_.Publish(now_s_);
    } else if (!saturate && arrival_s_ <= completion_s) {
      if (arrival_s_ == kNever) return false;
      MoveTo(arrival_s_);
      Arrive();
      engine_.Publish(now_s_);
    } else {
      if (completion_s == kNever) return false;
      MoveTo(completion_s);
      engine_.Complete([this](const SimRequest& request) { NoteDone(request); },
                       InWindow() ? &figures_.itl_s : nullptr);
      engine_.Publish(now_s_);
    }
    return true;
  }

  void MoveTo(double time_s) {
    if (InWindow()) {
      use_ += engine_.page_use() * (time_s - now_s_);
      running_ += static_cast<double>(engine_.num_running()) * (time_s - now_s_);
    }
    now_s_ = time_s;
  }

  void Arrive() {
    ++num_arrived_;
    if (num_arrived_ == first_ + 1) begin_s_ = now_s_;
    if (num_arrived_ == end_) end_s_ = now_s_;
    const bool measured = num_arrived_ > first_ && num_arrived_ <= end_ &&
                          (spec_.trace->num_tenants == 1 || next_.tenant > 0);
    num_measured_ += measured;
    // Ids of requests count from 1 in the order of arrival, but that refused ones take none.
    if (engine_.Submit(next_, *spec_.trace, now_s_)) {
      measured_.push_back(measured);
    } else {
      ++figures_.num_refused;
    }
    DrawNext();
  }

  void NoteDone(const SimRequest& request) {
    ++figures_.num_ended;
    if (InWindow()) ++num_ended_;
    if (!measured_[request.id - 1]) return;
    const double ttft_s = request.first_s - request.arrived_s;
    const uint32_t num_gaps = request.num_outputs() - 1;
    const double tpot_s = num_gaps == 0 ? 0 : (request.last_s - request.first_s) / num_gaps;
    ttfts_.push_back(ttft_s);
    if (num_gaps > 0) tpots_.push_back(tpot_s);
    num_good_ += ttft_s <= spec_.slo_ttft_s && tpot_s <= spec_.slo_tpot_s;
    num_preempted_ += request.num_preemptions > 0;
  }

  const RunSpec& spec_;
  Engine engine_;
  Trace trace_;
  const uint64_t first_, end_;  // requests measured, by order of arrival

  TraceItem next_;
  uint64_t num_drawn_ = 0, num_arrived_ = 0, num_measured_ = 0;
  double arrival_s_ = 0;  // of next_
  double now_s_ = 0, begin_s_ = 0, end_s_ = 0;
  std::vector<bool> measured_;  // by id - 1
  std::vector<double> ttfts_, tpots_;
  double num_ended_ = 0, num_good_ = 0, num_preempted_ = 0;
  double use_ = 0, running_ = 0;  // integrals over time
  RunFigures figures_;
};

}  // namespace

RunFigures Simulate(const DeviceModel& device, const EngineConfig& config, const RunSpec& spec) {
  const auto begin = std::chrono::steady_clock::now();
  RunFigures figures = Run(device, config, spec).Finish();
  figures.wall_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return figures;
}

}  // namespace penstock::simulate
