// What a rank does in the collective's tests, be it a process or a thread: a random series of calls
// that all ranks draw alike, each result held against the sum done by hand.
#pragma once

#include <fmt/format.h>

#include <bit>
#include <random>
#include <string>
#include <vector>

#include "common/status.h"
#include "worker/parallel/shm_collective.h"

namespace penstock::worker {

inline std::vector<float> PartOf(int rank, uint64_t seed, int64_t count) {
  std::mt19937_64 random(seed * 64 + static_cast<uint64_t>(rank));
  std::uniform_real_distribution<float> value(-100, 100);
  std::vector<float> part(count);
  for (float& x : part) x = value(random);
  return part;
}

inline absl::Status CheckBits(const std::vector<float>& got, const std::vector<float>& want,
                              const std::string& what) {
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::bit_cast<uint32_t>(got[i]) != std::bit_cast<uint32_t>(want[i])) {
      return Internal("{}: element {} is {} instead of {}", what, i, got[i], want[i]);
    }
  }
  return absl::OkStatus();
}

inline absl::Status OneReduce(ShmCollective* group, uint64_t seed, int segments, int64_t count) {
  std::vector<float> want(count);
  for (int rank = 0; rank < group->size(); ++rank) {
    const std::vector<float> part = PartOf(rank, seed, segments * count);
    for (int s = 0; s < segments; ++s) {
      for (int64_t i = 0; i < count; ++i) {
        const float x = part[s * count + i];
        want[i] = rank == 0 && s == 0 ? x : want[i] + x;
      }
    }
  }
  std::vector<float> partials = PartOf(group->rank(), seed, segments * count);
  // `out` may be `partials`.
  RETURN_IF_ERROR(group->AllReduceSum(partials.data(), segments, count, partials.data()));
  partials.resize(count);
  return CheckBits(partials, want, fmt::format("seed {} sum {}x{}", seed, segments, count));
}

inline absl::Status OneGather(ShmCollective* group, uint64_t seed, int64_t rows, int64_t cols) {
  std::vector<float> want(rows * cols * group->size());
  for (int rank = 0; rank < group->size(); ++rank) {
    const std::vector<float> part = PartOf(rank, seed, rows * cols);
    for (int64_t i = 0; i < rows * cols; ++i) {
      want[(i / cols * group->size() + rank) * cols + i % cols] = part[i];
    }
  }
  const std::vector<float> in = PartOf(group->rank(), seed, rows * cols);
  std::vector<float> out(want.size());
  RETURN_IF_ERROR(group->AllGatherColumns(in.data(), rows, cols, out.data()));
  return CheckBits(out, want, fmt::format("seed {} gather {}x{}", seed, rows, cols));
}

// `num_epochs` epochs of `num_calls` calls, of sizes around that of a half of the buffer.
inline absl::Status RunCollectives(const std::string& engine, int rank, uint64_t seed,
                                   int num_epochs, int num_calls) {
  ASSIGN_OR_RETURN(const auto segment,
                   shm::Segment::Attach(engine, rank, shm::MonotonicNs() + 30'000'000'000));
  // Its plan is never passed.
  segment->rank(rank).plan_cursor.store(0);
  const int64_t spin_ns = seed % 2 == 0 ? 0 : 5'000;
  ASSIGN_OR_RETURN(const auto group, ShmCollective::Create(segment.get(), rank, spin_ns));
  std::mt19937_64 random(seed);
  for (int epoch = 1; epoch <= num_epochs; ++epoch) {
    group->Reset(static_cast<uint64_t>(epoch));
    group->BeginPlan(1);
    for (int call = 0; call < num_calls; ++call) {
      const uint64_t call_seed = random();
      const int64_t size = 1 + static_cast<int64_t>(random() % (random() % 4 == 0 ? 5000 : 300));
      const int segments = 1 + static_cast<int>(random() % 4);
      const int64_t rows = 1 + static_cast<int64_t>(random() % 5);
      RETURN_IF_ERROR(random() % 3 != 0 ? OneReduce(group.get(), call_seed, segments, size)
                                        : OneGather(group.get(), call_seed, rows, size));
    }
  }
  return absl::OkStatus();
}

inline shm::Geometry CollectiveGeometry(int num_ranks) {
  shm::Geometry geometry;
  geometry.num_ranks = static_cast<uint32_t>(num_ranks);
  geometry.num_slots = 1;
  geometry.plan_ring_bytes = geometry.result_ring_bytes = 4096;
  geometry.arena_bytes = 4096;
  geometry.collective_bytes = sizeof(float) * 2 * 1024;
  return geometry;
}

}  // namespace penstock::worker
