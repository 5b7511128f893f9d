// The threads that sample one row: where the row lies, and sums, scans and gathers over them.
#pragma once

#include <cstdint>

#include "kernels/cuda/cluster.cuh"

namespace penstock::kernels::cuda {

constexpr int kSamplerThreads = 512;  // of a block
constexpr int kSamplerWarps = kSamplerThreads / 32;
constexpr int kMaxCandidates = 128;  // keys that are ordered directly
constexpr int kCountWindow = 8192;   // ids whose uses are counted at a time
constexpr int kMaxBlocksPerRow = 8;
static_assert(kMaxCandidates <= kSamplerThreads);

// A block's shared memory, before its slice of the row.
struct alignas(16) SamplerScratch {
  double partial[kSamplerWarps * 2];  // a Reduce's, by warp, 16 bytes each
  double exchange[2][kMaxBlocksPerRow * 2];
  double warp_sum[kSamplerWarps];
  uint64_t candidates[kMaxCandidates];
  uint64_t sorted[kMaxCandidates];
  uint64_t answer;
  int32_t num_candidates;
  int32_t first;  // the first thread that ...
  int32_t last;
  int32_t counts[kCountWindow];
};
static_assert(sizeof(SamplerScratch) % 16 == 0);

// The ids that a block has: [rank * size, ...), whole vectors of 4.
constexpr int SliceSize(int vocab_size, int blocks) {
  return ((vocab_size + blocks - 1) / blocks + 3) / 4 * 4;
}

template <typename T>
__device__ __forceinline__ T ShuffleXor(T value, int step) {
  static_assert(sizeof(T) % 4 == 0);
  union {
    T value;
    uint32_t words[sizeof(T) / 4];
  } all = {value};
#pragma unroll
  for (uint32_t& word : all.words) word = __shfl_xor_sync(~0u, word, step);
  return all.value;
}

// One thread's view. Every function that says "all threads" must be called by all threads of all
// blocks of the team.
template <int kBlocks>
class SamplerTeam {
 public:
  using Blocks = Cluster<kBlocks>;
  static constexpr int kNumBlocks = kBlocks;

  __device__ SamplerTeam(int vocab_size, float* values)
      : scratch(*reinterpret_cast<SamplerScratch*>(SharedMemory())),
        values(values),
        thread(threadIdx.x),
        rank(Blocks::Rank()) {
    const int slice = SliceSize(vocab_size, kBlocks);
    begin = rank * slice;
    size = max(0, min(vocab_size - begin, slice));
    // A thread's ids are neighbours, so that sums by thread are in the order of ids; an odd number
    // of them, so that a warp's accesses lie in 32 banks.
    const int strip = (slice + kSamplerThreads - 1) / kSamplerThreads | 1;
    strip_begin = min(thread * strip, size);
    strip_end = min(strip_begin + strip, size);
  }

  // All threads: waits for all, and for what they wrote.
  __device__ void Barrier() {
    Blocks::Arrive();
    Blocks::Wait();
  }

  // All threads. `combine` is associative and commutative; all get the same bits.
  template <typename T, typename Combine>
  __device__ T Reduce(T value, Combine combine) {
    static_assert(sizeof(T) <= 16);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value = combine(value, ShuffleXor(value, step));
    auto* partial = reinterpret_cast<T*>(scratch.partial);
    if (thread % 32 == 0) partial[thread / 32] = value;
    __syncthreads();
    if (thread < kBlocks) {
      value = partial[0];
#pragma unroll
      for (int w = 1; w < kSamplerWarps; ++w) value = combine(value, partial[w]);
    }
    const T* all = Gather(value);
    value = all[0];
#pragma unroll
    for (int r = 1; r < kBlocks; ++r) value = combine(value, all[r]);
    return value;
  }

  // All threads: the blocks' values, as the first kBlocks threads of each have them. The next
  // Gather but one overwrites them.
  template <typename T>
  __device__ const T* Gather(T value) {
    auto* all = reinterpret_cast<T*>(scratch.exchange[parity_]);
    parity_ ^= 1;
    if (thread < kBlocks) *Blocks::At(all + rank, thread) = value;
    Barrier();
    return all;
  }

  // All threads of one block: the sum of the values of threads 0 .. this one.
  __device__ double BlockScan(double value) {
    const int lane = thread % 32;
    const int warp = thread / 32;
    value = WarpScan(value, lane);
    if (lane == 31) scratch.warp_sum[warp] = value;
    __syncthreads();
    const double sums = WarpScan(lane < kSamplerWarps ? scratch.warp_sum[lane] : 0.0, lane);
    const double before = __shfl_sync(~0u, sums, warp == 0 ? 0 : warp - 1);
    return warp == 0 ? value : before + value;
  }

  // All threads: the value of the one thread whose it is. A barrier of the team must come before
  // the next call.
  __device__ uint64_t Broadcast(uint64_t value, bool mine) {
    if (mine) {
#pragma unroll
      for (int r = 0; r < kBlocks; ++r) *Blocks::At(&scratch.answer, r) = value;
    }
    Barrier();
    return scratch.answer;
  }

  SamplerScratch& scratch;
  float* values;  // of ids [begin, begin + size), by the block's own count
  const int thread;
  const int rank;
  int begin;
  int size;
  int strip_begin;  // this thread's, by the block's own count
  int strip_end;

 private:
  static __device__ double WarpScan(double value, int lane) {
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const double before = __shfl_up_sync(~0u, value, step);
      if (lane >= step) value += before;
    }
    return value;
  }

  int parity_ = 0;
};

}  // namespace penstock::kernels::cuda
