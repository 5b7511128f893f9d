// An engine's shared-memory segment, /dev/shm/penstock-<engine id>, mapped with Boost.Interprocess.
//
// The scheduler makes it; ranks attach. Presence of each party is an open-file-description lock on
// one byte of the segment's file, which the kernel drops when the process dies, however it dies: so
// death is an event that can be waited for, without heartbeats, process ids or name spaces.
// Thread-safe where said.
#pragma once

#include <boost/interprocess/mapped_region.hpp>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "common/shm/layout.h"
#include "common/status.h"

namespace penstock::shm {

class Segment {
 public:
  // Scheduler: makes the segment, or takes over the one a dead scheduler left, if its geometry is
  // the same (its ranks go on). Holds the scheduler's presence lock. Errors: FAILED_PRECONDITION
  // when another scheduler lives on it, or ranks live on one of another version or geometry;
  // RESOURCE_EXHAUSTED when /dev/shm is too small (says by how much); INVALID_ARGUMENT for a bad
  // engine id or geometry.
  static absl::StatusOr<std::unique_ptr<Segment>> CreateOrAdopt(std::string_view engine_id,
                                                                const Geometry& geometry);

  // Rank: attaches, waiting for the segment to appear until deadline_ns, and takes the rank's
  // presence lock. FAILED_PRECONDITION when the layout's version or sizes differ (names both), or
  // the rank is taken; DEADLINE_EXCEEDED; OUT_OF_RANGE when the engine has fewer ranks.
  static absl::StatusOr<std::unique_ptr<Segment>> Attach(std::string_view engine_id, int rank,
                                                         int64_t deadline_ns);

  // Removes the name; mappings live on. OK if there was none.
  static absl::Status Remove(std::string_view engine_id);
  static std::string Path(std::string_view engine_id);

  ~Segment();

  SegmentHeader& header() const;
  const Geometry& geometry() const { return header().geometry; }
  RequestSlot& slot(uint32_t index) const;
  RankArea& rank(int index) const;
  std::span<std::byte> plan_ring() const;
  std::span<std::byte> result_ring(int rank) const;
  std::span<std::byte> arena() const;
  std::span<std::byte> collective_buffer(int rank) const;
  // True if this CreateOrAdopt took over a segment.
  bool adopted() const { return adopted_; }

  bool RankIsAlive(int rank) const;  // thread-safe
  // Blocks until no process holds the rank's presence. Thread-safe. Returns at once if none does. A
  // process may have taken the rank anew by the time it returns: compare RankArea::incarnation.
  void WaitForRankDeath(int rank) const;

 private:
  Segment() = default;
  absl::Status Map(std::string_view engine_id);

  int fd_ = -1;  // an open file description of our own: OFD locks belong to it
  std::string path_;
  bool adopted_ = false;
  boost::interprocess::mapped_region region_;
};

}  // namespace penstock::shm
