// One simulated run: a trace at a rate through an engine, and what came of it.
#pragma once

#include <cstdint>

#include "tools/bench/simulate/engine.h"
#include "tools/bench/simulate/policies.h"
#include "tools/penstock/bench/statistics.h"

namespace penstock::simulate {

struct RunSpec {
  const TraceSpec* trace;
  const PolicySpec* policy;
  uint64_t num_requests = 0;
  uint64_t seed = 0;
  double rate = 0;  // requests a second; 0: there are always some waiting
  double slo_ttft_s = 0, slo_tpot_s = 0;
};

// Where there are tenants, of all but the first. Over the requests that come between the first
// fifth (start, learning) and the last twentieth, and over that time; but the counts are of all.
struct RunFigures {
  double requests_per_s = 0;  // that ended
  double goodput = 0;         // requests a second that came and met both objectives
  double good_share = 0;      // of those that came
  double preempted_share = 0;
  double cached_share = 0;  // of all prompts' ids, found in the prefix cache
  double page_use = 0;      // mean over time
  double mean_running = 0;  // requests, over steps
  bench::Summary ttft_s, tpot_s;
  LogHistogram itl_s;  // between tokens of a request
  uint64_t num_requests = 0, num_ended = 0, num_refused = 0;
  uint64_t num_preemptions = 0, num_steps = 0;
  double simulated_s = 0, wall_s = 0;
};

RunFigures Simulate(const DeviceModel& device, const EngineConfig& config, const RunSpec& spec);

}  // namespace penstock::simulate
