// Carries out the plan stream of one rank: reads plans, keeps slots, runs the decoder, publishes
// results.
//
// What it does depends on the plan stream alone, never on a flag that another rank might see a step
// earlier or later. A step is Prepare (host: slots, batch) -> Launch (device) -> Finish (wait,
// publish). With a device that runs on its own, a second thread finishes steps, so that the next
// one is prepared and launched while the device runs: it never waits for the host. Where an op runs
// inside its call, one thread does it all.
//
// Nothing is allocated per step.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

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
  // All pointers outlive the executor; collective is null with one rank. Runs steps of every size
  // there will be once, on page 0, which holds nothing yet, and has them captured: nothing is
  // loaded or allocated later. It starts at the plan cursor in the rank's area. INVALID_ARGUMENT
  // when a step's results could not fit the segment's result ring.
  static absl::StatusOr<std::unique_ptr<Executor>> Create(shm::Segment* segment,
                                                          kernels::Backend* backend,
                                                          Decoder* decoder,
                                                          ShmCollective* collective,
                                                          const ExecutorOptions& options);
  ~Executor();

  // Until *stop (set it, then notify header.plan_event): OK. ABORTED when a peer died, INTERNAL
  // when a plan cannot be right or the device failed. Once.
  absl::Status Run(const std::atomic<bool>& stop);

 private:
  // A step from its launch until its results are out.
  struct Flight {
    Flight(int max_tokens, int max_rows) : batch(max_tokens, max_rows) {}
    StepBatch batch;
    uint64_t epoch = 0;
    uint64_t step = 0;
    StepTimes times;
    bool device_was_due = false;  // there was work before this plan, so idling counts
  };

  Executor(shm::Segment* segment, kernels::Backend* backend, Decoder* decoder,
           ShmCollective* collective, const ExecutorOptions& options);

  absl::Status TakeRecords();
  absl::Status TakeRecord(const std::byte* record);
  absl::Status Reset(uint64_t epoch);
  absl::Status Step(const shm::PlanHeader& header);
  absl::Status Prepare(const StepPlan& plan, StepBatch* batch);
  absl::Status Launch(Flight* flight);
  absl::Status Finish(Flight* flight);
  void Publish(const Flight& flight);
  void WaitForPlan(uint32_t seen);
  void Heartbeat();

  // The finishing thread's side.
  bool overlapped() const { return flights_.size() > 1; }
  void FinishSteps();
  void StopFinishing();
  // Until at most `most` steps are under way. The finishing thread's error, if it has met one.
  absl::Status WaitForFlights(uint64_t most);

  shm::Segment* const segment_;
  shm::SegmentHeader* const header_;
  shm::RankArea* const area_;
  kernels::Backend* const backend_;
  Decoder* const decoder_;
  ShmCollective* const collective_;
  const ExecutorOptions options_;
  const std::atomic<bool>* stop_ = nullptr;

  shm::RingReader plans_;
  ResultWriter results_;  // the finishing thread's, if there is one
  SlotTable slots_;
  std::unique_ptr<kernels::Buffer> token_buffer_;
  kernels::TokenTable tokens_;
  uint64_t epoch_ = 0;  // of the last Reset; 0: none yet, steps are not ours
  uint64_t last_step_ = 0;
  uint64_t device_free_ns_ = 0;  // since when the device waits for work that is due; 0: none is

  std::vector<Flight> flights_;  // step n of this process at n % size
  std::thread finisher_;
  std::mutex mutex_;
  std::condition_variable changed_;  // of what follows
  uint64_t num_launched_ = 0;
  uint64_t num_finished_ = 0;
  bool quit_ = false;
  absl::Status finish_error_;
};

}  // namespace penstock::worker
