// A recording of a made-up engine: random arrivals (of prompts of which many begin alike, and some
// are the same), ends,
// cancels, preemptions and deaths, against a RecordedBatch. Ids are SegmentRank's, whose model it
// is, so that such a rank can be driven with the recording.
#pragma once

#include <array>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "scheduler/record/recorded_batch.h"

namespace penstock::scheduler {

struct TraceOptions {
  uint32_t seed = 1;
  uint32_t num_pages = 512;
  uint32_t num_slots = 16;
  uint64_t arena_bytes = 1 << 20;
  uint32_t page_size = 16;
  bool sharing = true;
  bool log_probabilities = true;  // some requests want their prompt's
};

class RecordedTrace {
 public:
  // Records to `path`; nothing if that is empty.
  RecordedTrace(const std::string& path, const TraceOptions& options);

  void Run(int num_steps);
  // Lets all that is there end.
  void Finish();

  uint64_t num_published = 0, num_arrived = 0, num_deaths = 0, num_failed = 0, num_copies = 0;
  uint64_t num_preemptions() const { return batch_.num_preemptions(); }
  RecordedBatch& batch() { return batch_; }

 private:
  struct InFlight {
    uint64_t step;
    std::vector<shm::ResultRow> rows;
  };

  void Step();
  void Arrive();
  void CancelOne();
  void Die();
  void Reset();
  bool Publish();
  void Complete();
  int32_t RandomId() { return static_cast<int32_t>(random_() % 1000); }

  std::mt19937 random_;
  const TraceOptions options_;
  const ModelFacts model_;
  std::vector<shm::RequestSlot> slots_;
  std::vector<std::byte> arena_;
  RecordedBatch batch_;
  std::map<uint64_t, std::unique_ptr<Request>> live_;
  std::deque<InFlight> in_flight_;
  uint64_t next_step_ = 1, epoch_ = 0;
  std::array<std::vector<int32_t>, 6> beginnings_;
  std::vector<int32_t> last_prompt_;
};

}  // namespace penstock::scheduler
