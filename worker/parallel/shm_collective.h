// Collectives between the ranks of one node through the segment's collective buffers.
//
// Each rank has a buffer of two halves that successive calls use in turn. A rank puts its part in
// its half, publishes its sequence number, waits until every peer has published the same number,
// and reads their halves. It reuses a half two calls on, by when every peer has published the call
// in between, hence finished reading: so one meeting a call is enough. Data larger than a half goes
// in pieces.
//
// Sequence numbers are (epoch << 40) + count. A rank's first call of an epoch also waits until all
// peers have begun that epoch, so that a half an older epoch may still be reading is not
// overwritten.
#pragma once

#include <cstdint>

#include "common/shm/segment.h"
#include "kernels/collective.h"

namespace penstock::worker {

class ShmCollective : public kernels::Collective {
 public:
  // `segment` outlives this. spin_ns: how long a wait spins before it sleeps; 0 where ranks share
  // cores. INVALID_ARGUMENT when the segment's buffers are too small.
  static absl::StatusOr<std::unique_ptr<ShmCollective>> Create(const shm::Segment* segment,
                                                               int rank, int64_t spin_ns);

  // A new epoch begins: counts anew. Thread: the one that makes the calls.
  void Reset(uint64_t epoch);
  // The calls that follow belong to the plan that ends at this cursor. A peer that has passed it
  // without taking part never will (it was started anew).
  void BeginPlan(uint64_t plan_end) { plan_end_ = plan_end; }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  absl::Status AllReduceSum(const float* partials, int num_segments, int64_t count,
                            float* out) override;
  absl::Status AllGatherColumns(const float* in, int64_t num_rows, int64_t cols,
                                float* out) override;

 private:
  ShmCollective(const shm::Segment* segment, int rank, int64_t spin_ns);

  // Where `rank` puts its part of the current call.
  float* Half(int rank) const;
  // Starts the next call; the own half may be filled then.
  absl::Status Begin();
  // The own half is filled: publishes it and waits for all peers'.
  absl::Status Meet();
  absl::Status WaitForPeer(int peer, uint64_t sequence) const;

  const shm::Segment* const segment_;
  const int rank_, size_;
  const int64_t spin_ns_;
  const int64_t half_floats_;
  uint64_t sequence_ = 0;
  uint64_t plan_end_ = 0;
  bool epoch_begun_ = false;  // all peers have been seen in this epoch
};

}  // namespace penstock::worker
