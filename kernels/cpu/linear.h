// Weights packed for the CPU and products with them.
//
// Two modes, fixed when a context is made:
//  - kFast: quantised weights stay quantised, and activations are quantised too, a block of 32 at a
//    time: to int16, or to int8 for weights loaded as kCoarseLinear. With int8 for all, as ggml
//    does, too few of a small model's choices are those of float32. F16, BF16 and F32 weights are
//    multiplied as bfloat16 (F16 and F32 ones that are embeddings too stay exact).
//  - kFloat32: weights are widened to float32.
// In both, out[t][n] is one fixed sequence of operations on row n and token t, so a token's bits
// depend neither on its batch, the threads nor the other rows. With S segments each segment is such
// a sequence over its own columns: a rank that holds only those gets the same bits. Bits may differ
// between kinds of CPU.
//
// One thread calls; work is spread over a pool of `threads`, that one included. Nothing is
// allocated after ReserveScratch.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/ops.h"

namespace penstock::kernels::cpu {

struct LinearKernels;
class ThreadPool;

enum class Mode : uint8_t { kFast, kFloat32 };

class CpuWeight : public Weight {
 public:
  // row[0 .. cols) = row `index` as float32: exactly Dequantize() of the stored row, for weights
  // loaded with an embedding use.
  virtual void DequantizeRow(int64_t index, float* row) const = 0;
  // out = x * W^T (+ bias); see LinearParams. Not for kEmbedding. num_k_segments divides cols; in
  // the fast mode a segment must be whole blocks of 32 columns (pairs for bfloat16).
  virtual void Multiply(const float* x, int64_t x_stride, const float* bias, float* out,
                        int32_t num_tokens, int32_t num_k_segments) const = 0;
  // A view of rows [begin, begin + count), sharing memory; see Backend::WeightRows. InvalidArgument
  // unless begin is inside and a multiple of 16 counted from the start of its segment.
  virtual absl::StatusOr<std::unique_ptr<CpuWeight>> Rows(int64_t begin, int64_t count) const = 0;
};

// Threads and scratch shared by all weights of a backend.
class LinearContext {
 public:
  virtual ~LinearContext() = default;
  // Scratch for batches of up to max_tokens rows and products of up to max_width columns (K; the
  // output head's too).
  virtual absl::Status ReserveScratch(int32_t max_tokens, int32_t max_width) = 0;
  // InvalidArgument says what is wrong with the segments; RESOURCE_EXHAUSTED how much memory was
  // asked for.
  virtual absl::StatusOr<std::unique_ptr<CpuWeight>> Load(std::span<const WeightSegment> segments,
                                                          WeightUse use) = 0;
  // The threads, for the other ops to share.
  virtual ThreadPool& pool() = 0;
};

// threads >= 1. The context must outlive its weights. Uses the best kernels this CPU has.
std::unique_ptr<LinearContext> MakeLinearContext(Mode mode, int threads);

// The same with the kernels of choice, for tests and benchmarks; AvailableKernels lists those this
// CPU can run, the best last.
std::unique_ptr<LinearContext> MakeLinearContext(Mode mode, int threads,
                                                 const LinearKernels& kernels);
std::span<const LinearKernels> AvailableKernels();

}  // namespace penstock::kernels::cpu
