// The scheduler's end of the segment: the group of ranks as one device that is down, being reset or
// serving; plans out, results in. Engine thread only, but that deaths are waited for by threads of
// its own, which wake the engine thread through scheduler_event.
//
// The scheduler neither starts nor ends processes: the launcher ends the whole group when a rank
// dies and starts it anew; here that is an epoch that ends and one that begins.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/shm/ring.h"
#include "common/shm/segment.h"
#include "common/status.h"
#include "scheduler/plan_record.h"
#include "scheduler/request.h"

namespace penstock::scheduler {

class WorkerLink {
 public:
  enum class State {
    kDown,       // a rank is absent, loading or failed
    kResetting,  // all are ready; not all have carried out the Reset of this epoch
    kServing,
  };
  enum class Change { kNone, kServing, kLost };

  // Begins a new epoch on a segment that was just made or adopted.
  explicit WorkerLink(std::shared_ptr<shm::Segment> segment);

  // Looks at the ranks and goes on to the next state. kLost: the group was resetting or serving and
  // is not any more; plans and results of this epoch are void.
  Change Poll();
  // Ends the epoch because of what the ranks do, though none has died. The next Poll says kLost.
  void DeclareLost(std::string reason);
  // Ends the epoch at once, as its plans were another scheduler's (worker_replay.h).
  void Abandon(const std::string& reason) { EndEpoch(reason); }

  State state() const { return state_; }
  uint64_t epoch() const { return epoch_; }
  // Why the group does not serve, in words for people: "rank 0 loads weights, 40%".
  std::string NotReadyReason() const;
  // Why the last epoch ended.
  const std::string& lost_reason() const { return lost_reason_; }
  // Of the ranks; valid once kServing was reached.
  const ModelFacts& model() const { return model_; }

  // Publishes a step; `step` counts 1, 2, ... in each epoch. kServing only.
  void Publish(uint64_t step, const PlanRecord& record);

  // Rank 0's record of step `step` if every rank has completed it, else null. Valid until Consume,
  // which must follow before the next step is asked for. Ranks that disagree end the epoch.
  const shm::ResultHeader* NextResult(uint64_t step);
  void Consume();

  // Of the segment of an engine; its rings hold what can be in flight.
  static shm::Geometry MakeGeometry(uint32_t num_ranks, uint32_t num_slots, uint64_t arena_bytes,
                                    uint32_t max_num_batched_tokens);
  // Rings that hold what can be in flight, for so many slots and tokens a step.
  static shm::Geometry SizeRings(shm::Geometry geometry, uint32_t max_num_batched_tokens);

 private:
  struct Watch {  // of one incarnation of a rank; shared with the thread that waits for its death
    std::shared_ptr<shm::Segment> segment;
    int rank;
    std::atomic<bool> dead{false};
  };
  struct Rank {
    uint64_t incarnation = 0;  // the one this epoch runs on
    std::shared_ptr<Watch> watch;
    std::unique_ptr<shm::RingReader> results;
    const shm::ResultHeader* next = nullptr;  // read but not consumed
  };

  absl::Status GroupReady(ModelFacts* model) const;
  absl::Status GroupIntact() const;
  void BeginReset();
  void EndEpoch(const std::string& reason);
  void WatchRank(int index);
  uint64_t MinPlanCursor() const;

  std::shared_ptr<shm::Segment> segment_;
  shm::RingWriter plans_;
  std::vector<Rank> ranks_;
  State state_ = State::kDown;
  uint64_t epoch_ = 0;
  ModelFacts model_;
  std::string declared_lost_;  // reason; empty: none
  std::string lost_reason_;
};

}  // namespace penstock::scheduler
