// Carries out the plan stream of one rank: reads plans, keeps slots, runs the decoder, publishes
// results.
//
// What it does depends on the plan stream alone, never on a flag that another rank might see a step
// earlier or later. A step is Prepare (host: slots, batch) -> Launch (device) -> Publish (host:
// results, cursors), so that a device that runs on its own can have the next step prepared
// meanwhile; today they follow each other, as every backend computes inside its calls.
//
// One thread runs it. Nothing is allocated per step.
#pragma once

#include <atomic>
#include <memory>

#include "absl/status/status.h"
#include "common/shm/ring.h"
#include "common/shm/segment.h"
#include "worker/model/decoder.h"
#include "worker/parallel/shm_collective.h"
#include "worker/result_writer.h"
#include "worker/slot_table.h"
#include "worker/step_batch.h"

namespace penstock::worker {

struct ExecutorOptions {
  int rank = 0;
  int max_num_batched_tokens = 512;
  SlotLimits limits;
  int64_t spin_ns = 0;  // for the next plan, right after a step, before sleeping
};

class Executor {
 public:
  // All pointers outlive the executor; collective is null with one rank. It starts at the plan
  // cursor in the rank's area. INVALID_ARGUMENT when a step's results could not fit the segment's
  // result ring.
  static absl::StatusOr<std::unique_ptr<Executor>> Create(shm::Segment* segment,
                                                          kernels::Backend* backend,
                                                          Decoder* decoder,
                                                          ShmCollective* collective,
                                                          const ExecutorOptions& options);

  // Until *stop (set it, then notify header.plan_event): OK. ABORTED when a peer died, INTERNAL
  // when a plan cannot be right.
  absl::Status Run(const std::atomic<bool>& stop);

 private:
  Executor(shm::Segment* segment, kernels::Backend* backend, Decoder* decoder,
           ShmCollective* collective, const ExecutorOptions& options);

  absl::Status TakeRecord(const std::byte* record);
  void Reset(uint64_t epoch);
  absl::Status Step(const shm::PlanHeader& header);
  absl::Status Prepare(const StepPlan& plan);
  absl::Status Launch();
  void Publish(const StepPlan& plan, const StepTimes& times);
  void WaitForPlan();
  void Heartbeat();

  shm::Segment* const segment_;
  shm::SegmentHeader* const header_;
  shm::RankArea* const area_;
  kernels::Backend* const backend_;
  Decoder* const decoder_;
  ShmCollective* const collective_;
  const ExecutorOptions options_;
  const std::atomic<bool>* stop_ = nullptr;

  shm::RingReader plans_;
  ResultWriter results_;
  SlotTable slots_;
  StepBatch batch_;
  std::unique_ptr<kernels::Buffer> token_buffer_;
  kernels::TokenTable tokens_;
  uint64_t epoch_ = 0;  // of the last Reset; 0: none yet, steps are not ours
  uint64_t last_step_ = 0;
  uint64_t device_free_ns_ = 0;  // since when the device waits for work that is due; 0: none is
};

}  // namespace penstock::worker
