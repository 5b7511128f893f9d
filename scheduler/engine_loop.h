// The scheduler's one deciding thread, and the only place with effects: takes messages from routers
// and results from ranks, lets Batch compose steps, publishes them ahead of the results, and sends
// each router one message a step. Sleeps on the segment's scheduler_event; only real deadlines (a
// router's lease, a step that hangs, the drain) bound the sleep.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "common/net/wire.h"
#include "common/shm/segment.h"
#include "common/status.h"
#include "scheduler/drain_rate.h"
#include "scheduler/metrics.h"
#include "scheduler/record/recorded_batch.h"
#include "scheduler/router_link.h"
#include "scheduler/router_table.h"
#include "scheduler/step_budget.h"
#include "scheduler/worker_link.h"

namespace penstock::scheduler {

struct EngineOptions {
  std::string engine_id = "default";
  std::string listen;  // engine address, see common/net/wire.h
  uint32_t num_ranks = 1;
  uint32_t max_num_seqs = 256;
  uint32_t max_num_batched_tokens = 2048;
  double target_itl_ms = 0;                                 // step_budget.h; 0: none
  uint32_t max_queued_requests = 4096;                      // of each class of priority
  absl::flat_hash_map<std::string, double> tenant_weights;  // of those who are not named: 1
  uint32_t arena_mb = 64;
  bool enable_prefix_caching = true;
  bool overlap = true;  // plan a step while the one before runs
  bool check_invariants = false;
  bool log_requests = true;
  std::string record_plans;  // file to make; empty: nothing is recorded. See recorder.h
  int64_t drain_timeout_ms = 30'000;
  int64_t lease_timeout_ms = net::kLeaseTimeoutMs;
};

class EngineLoop {
 public:
  // Makes or adopts the segment and binds the sockets. `metrics` (injected; may be null) must
  // outlive the loop.
  static absl::StatusOr<std::unique_ptr<EngineLoop>> Create(const EngineOptions& options,
                                                            Metrics* metrics);

  // Returns when a drain is over; the segment's name is then removed.
  void Run();
  // Begins a drain; a second call ends it at once. Any thread; not from a signal handler.
  void Stop();

 private:
  static constexpr int kMaxInFlight = 2;  // unfinished steps
  // A step that takes longer hangs, as far as routers are told.
  static constexpr int64_t kStepTimeoutNs = 60'000'000'000;

  EngineLoop(const EngineOptions& options, Metrics* metrics, std::shared_ptr<shm::Segment> segment,
             std::unique_ptr<RouterLink> routers, std::optional<KeySecret> prefix_secret,
             std::unique_ptr<Recorder> recorder);

  // engine_loop.cc: steps
  void HandleRanks();
  void LoseRanks();
  void BeginServing();
  void HandleResults();
  void TakeUp(const shm::ResultHeader& step);
  void TakeUpId(Request& request, const shm::ResultRow& row, const shm::ResultTop* tops);
  void PublishPlans();
  void ObserveStep(const shm::ResultHeader& step);
  void ObserveLoad();
  bool Drained() const;
  int64_t NextDeadline() const;

  // engine_requests.cc: requests and routers
  void HandleMessages();
  void HandleSubmit(Router& router, const wire::Submit& submit);
  absl::Status Admissible(const wire::Submit& submit, int num_outputs) const;
  void Validate(Request& request);
  void HandleLease(Router& router, const wire::Lease& lease);
  void ExpireRouters();
  void ExpireRequests();
  void ReleaseRouter(Router& router);
  void Cancel(Request& request, const char* why);
  void End(Request& request, wire::EndReason reason);
  void Fail(Request& request, const absl::Status& error);
  void Forget(Request& request, std::string_view outcome);
  void FailAll(const absl::Status& error);
  void FlushRouters();
  void NoteReadiness();

  const EngineOptions options_;
  Metrics* metrics_;
  std::shared_ptr<shm::Segment> segment_;
  std::unique_ptr<RouterLink> router_link_;
  WorkerLink workers_;
  RecordedBatch batch_;
  RouterTable routers_;
  absl::btree_set<std::pair<int64_t, Request*>> deadlines_;
  DrainRate drain_rate_;
  uint32_t num_admitted_ = 0;  // that drain_rate_ has not been told of

  uint64_t next_step_ = 1;                               // to be planned
  uint64_t completed_step_ = 0;                          // within the epoch
  std::array<int64_t, kMaxInFlight> published_ns_ = {};  // of step s at s % kMaxInFlight
  std::array<StepShape, kMaxInFlight> shapes_;           // likewise
  StepBudget step_budget_{0, 0};
  PlanRecord record_;
  bool idle_checked_ = false;  // the invariants, since something last ran

  std::vector<wire::ToScheduler> inbox_;
  uint64_t num_messages_ = 0;
  std::atomic<int> num_stops_{0};
  bool draining_ = false;
  int64_t drain_deadline_ns_ = shm::kNoDeadline;
  bool told_ready_ = false;  // what routers were told last
  bool told_draining_ = false;
  uint64_t num_restarts_ = 0;
  double idle_ratio_ = 0;
  uint64_t window_idle_ns_ = 0, window_busy_ns_ = 0;
  uint64_t reported_preemptions_ = 0;
  PrefixStats reported_prefixes_;
};

}  // namespace penstock::scheduler
