// An engine without processes: the scheduler's own Batch and policy before a device that takes as
// long as DeviceModel says. As in engine_loop, plans run up to two ahead of results; time is
// simulated, and the scheduler's own work takes none of it.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "scheduler/batch.h"
#include "scheduler/step_budget.h"
#include "tools/bench/simulate/device_model.h"
#include "tools/bench/simulate/log_histogram.h"
#include "tools/bench/simulate/trace.h"

namespace penstock::simulate {

struct EngineConfig {
  uint32_t num_pages = 0;
  uint32_t max_num_seqs = 1024;
  uint32_t max_num_batched_tokens = 2048;
  double target_itl_s = 0;  // 0: every step may have all of these
  double step_noise = 0;    // spread of a step about what the model says, as a share of it
  uint32_t max_queued_requests = 4096;
  bool share_prefixes = true;
};

// Called once for each scheduler::Batch, to choose its admission. Returns what is called before
// each step with the share of pages in use; may be empty.
using SetUp = std::function<std::function<void(double)>(scheduler::Batch&)>;

struct SimRequest : scheduler::Request {
  double arrived_s = 0, first_s = 0, last_s = 0;
  uint32_t output_len = 0;
};

class Engine {
 public:
  Engine(const DeviceModel& device, const EngineConfig& config, const SetUp& set_up);

  // False: refused, the queue is full.
  bool Submit(const TraceItem& item, const TraceSpec& trace, double now_s);
  // Plans as far as may be, at the time `now_s`.
  void Publish(double now_s);
  // When the step that runs ends; infinity if none does.
  double NextCompletion() const;
  // Takes up its results. `done` sees each request that ends, for the last time. With `itl_s`, adds
  // the times since the tokens before.
  void Complete(const std::function<void(const SimRequest&)>& done, LogHistogram* itl_s);

  size_t num_waiting() const { return batch_.num_waiting(); }
  size_t num_running() const { return batch_.num_running(); }
  const scheduler::PrefixStats& prefix_stats() const { return batch_.prefix_stats(); }
  double page_use() const { return batch_.PageUsage(); }
  uint64_t num_preemptions() const { return batch_.num_preemptions(); }
  uint64_t num_steps() const { return num_steps_; }

 private:
  struct Step {
    uint64_t number;
    double end_s;
    scheduler::StepShape shape;
    double seconds;  // on the device
    std::vector<shm::PlanSlot> samples;
  };

  const DeviceModel& device_;
  EngineConfig config_;
  scheduler::ModelFacts model_;
  std::vector<shm::RequestSlot> slots_;
  std::vector<std::byte> arena_;
  scheduler::Batch batch_;
  std::function<void(double)> before_step_;
  scheduler::StepBudget step_budget_;
  std::mt19937_64 random_{1};
  std::normal_distribution<double> normal_;
  scheduler::PlanRecord record_;
  std::deque<Step> in_flight_;
  std::vector<std::vector<shm::PlanSlot>> spare_;  // memory of steps gone by
  uint64_t num_steps_ = 0;
  double device_free_s_ = 0;  // when the last step planned ends

  std::deque<SimRequest> requests_;  // all there ever were at once; never moved
  std::vector<SimRequest*> unused_;
  uint64_t next_id_ = 0;
};

}  // namespace penstock::simulate
