#include "worker/parallel/shm_collective.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "common/status.h"

namespace penstock::worker {
namespace {

constexpr int kEpochShift = 40;
constexpr int64_t kDeathCheckNs = 100'000'000;
constexpr int64_t kMinHalfFloats = 1024;

}  // namespace

absl::StatusOr<std::unique_ptr<ShmCollective>> ShmCollective::Create(const shm::Segment* segment,
                                                                     int rank, int64_t spin_ns) {
  std::unique_ptr<ShmCollective> collective(new ShmCollective(segment, rank, spin_ns));
  if (collective->size_ > 1 && collective->half_floats_ < kMinHalfFloats) {
    return InvalidArgument(
        "the segment has collective buffers of {} bytes for {} ranks: the scheduler must give each "
        "at least {}",
        segment->geometry().collective_bytes, collective->size_,
        2 * kMinHalfFloats * sizeof(float));
  }
  return collective;
}

ShmCollective::ShmCollective(const shm::Segment* segment, int rank, int64_t spin_ns)
    : segment_(segment),
      rank_(rank),
      size_(static_cast<int>(segment->geometry().num_ranks)),
      spin_ns_(spin_ns),
      // Halves start at a cache line.
      half_floats_(
          static_cast<int64_t>(segment->geometry().collective_bytes / 128 * 64 / sizeof(float))) {}

void ShmCollective::Reset(uint64_t epoch) {
  sequence_ = epoch << kEpochShift;
  epoch_begun_ = false;
  shm::RankArea& area = segment_->rank(rank_);
  area.collective_sequence.store(sequence_, std::memory_order_release);
  area.collective_event.Notify();
}

float* ShmCollective::Half(int rank) const {
  auto* buffer = reinterpret_cast<float*>(segment_->collective_buffer(rank).data());
  return buffer + (sequence_ & 1) * half_floats_;
}

absl::Status ShmCollective::Begin() {
  if (!epoch_begun_) {
    for (int peer = 0; peer < size_; ++peer) RETURN_IF_ERROR(WaitForPeer(peer, sequence_));
    epoch_begun_ = true;
  }
  ++sequence_;
  return absl::OkStatus();
}

absl::Status ShmCollective::Meet() {
  shm::RankArea& area = segment_->rank(rank_);
  area.collective_sequence.store(sequence_, std::memory_order_release);
  area.collective_event.Notify();
  for (int peer = 0; peer < size_; ++peer) RETURN_IF_ERROR(WaitForPeer(peer, sequence_));
  return absl::OkStatus();
}

absl::Status ShmCollective::WaitForPeer(int peer, uint64_t sequence) const {
  if (peer == rank_) return absl::OkStatus();
  shm::RankArea& area = segment_->rank(peer);
  while (true) {
    const uint32_t seen = area.collective_event.Current();
    if (area.collective_sequence.load(std::memory_order_acquire) >= sequence) {
      return absl::OkStatus();
    }
    if (area.collective_event.Wait(seen, shm::MonotonicNs() + kDeathCheckNs, spin_ns_)) continue;
    // The cursor first: a peer that has passed the plan published its part before.
    const bool passed = area.plan_cursor.load(std::memory_order_acquire) >= plan_end_;
    const bool alive = segment_->RankIsAlive(peer);
    if (area.collective_sequence.load(std::memory_order_acquire) >= sequence) continue;
    if (!alive || passed) {
      return Aborted("rank {} {} while rank {} waited for its part of a sum", peer,
                     alive ? "was started anew" : "died", rank_);
    }
  }
}

absl::Status ShmCollective::AllReduceSum(const float* partials, int num_segments, int64_t count,
                                         float* out) {
  const int64_t piece = half_floats_ / num_segments;
  for (int64_t begin = 0; begin < count; begin += piece) {
    const int64_t n = std::min(piece, count - begin);
    RETURN_IF_ERROR(Begin());
    float* mine = Half(rank_);
    for (int s = 0; s < num_segments; ++s) {
      std::memcpy(mine + s * n, partials + s * count + begin, n * sizeof(float));
    }
    RETURN_IF_ERROR(Meet());
    // Strictly left to right over ranks, then segments: the order every rank sums in.
    std::memcpy(out + begin, Half(0), n * sizeof(float));
    for (int part = 1; part < size_ * num_segments; ++part) {
      const float* x = Half(part / num_segments) + (part % num_segments) * n;
      float* sum = out + begin;
      for (int64_t i = 0; i < n; ++i) sum[i] += x[i];
    }
  }
  return absl::OkStatus();
}

absl::Status ShmCollective::AllGatherColumns(const float* in, int64_t num_rows, int64_t cols,
                                             float* out) {
  const int64_t count = num_rows * cols;
  for (int64_t begin = 0; begin < count; begin += half_floats_) {
    const int64_t end = std::min(begin + half_floats_, count);
    RETURN_IF_ERROR(Begin());
    std::memcpy(Half(rank_), in + begin, (end - begin) * sizeof(float));
    RETURN_IF_ERROR(Meet());
    for (int rank = 0; rank < size_; ++rank) {
      const float* theirs = Half(rank);
      for (int64_t i = begin; i < end;) {
        const int64_t row = i / cols, col = i % cols;
        const int64_t n = std::min(cols - col, end - i);
        std::memcpy(out + (row * size_ + rank) * cols + col, theirs + (i - begin),
                    n * sizeof(float));
        i += n;
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace penstock::worker
