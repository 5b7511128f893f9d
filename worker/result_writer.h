// Writes a rank's result ring: one record a step. One thread.
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "common/shm/ring.h"
#include "common/shm/segment.h"
#include "worker/step_batch.h"

namespace penstock::worker {

// When the parts of a step happened, CLOCK_MONOTONIC; see shm::ResultHeader.
struct StepTimes {
  uint64_t plan_ns = 0, begin_ns = 0, end_ns = 0, idle_ns = 0;
};

// The largest record a step of max_tokens tokens can make.
uint64_t MaxResultBytes(int max_tokens);

class ResultWriter {
 public:
  // `segment` outlives the writer. A new writer goes on where a dead one stopped.
  ResultWriter(shm::Segment* segment, int rank);

  // Makes the step's record visible (notify the scheduler afterwards); false if the ring is full.
  // Rank 0's record has the rows, the others' the hash alone.
  bool TryWrite(uint64_t epoch, uint64_t step, const StepBatch& batch, const StepTimes& times);

 private:
  static std::byte* WriteRows(const StepBatch& batch, std::byte* at);

  shm::Segment* const segment_;
  const int rank_;
  shm::RingWriter ring_;
};

}  // namespace penstock::worker
