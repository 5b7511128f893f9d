// Weights packed for the CPU and products with them.
//
// Two modes, fixed when a backend is made:
//  - kFast: quantised weights stay quantised (activations are quantised to int8 a block of 32 at a
//  time, as ggml does);
//    small batches use own VNNI kernels, large ones oneDNN. Results may differ in the last bits
//    with the batch's size.
//  - kFloat32: weights are widened to float32; out[t][n] is computed by one fixed sequence of
//  operations whatever T, N,
//    the threads and the rows beside it, so a token's bits never depend on its batch.
// One thread calls; work is spread over `threads` OpenMP threads. Nothing is allocated after
// ReserveScratch.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "kernels/ops.h"

namespace penstock::kernels::cpu {

enum class Mode : uint8_t { kFast, kFloat32 };

class CpuWeight : public Weight {
 public:
  // row[0 .. cols) = row `index` as float32. For embeddings; any weight loaded with an embedding
  // use.
  virtual void DequantizeRow(int64_t index, float* row) const = 0;
  // out = x * W^T (+ bias); see LinearParams. Scratch belongs to the weight's LinearContext.
  virtual void Multiply(const float* x, int64_t x_stride, const float* bias, float* out,
                        int32_t num_tokens, int32_t num_k_segments) const = 0;
  // A view of rows [begin, begin + count); see Backend::WeightRows.
  virtual absl::StatusOr<std::unique_ptr<CpuWeight>> Rows(int64_t begin, int64_t count) const = 0;
};

// Threads and scratch shared by all weights of a backend.
class LinearContext {
 public:
  virtual ~LinearContext() = default;
  // Scratch for batches of up to max_tokens rows and products up to max_width wide.
  virtual absl::Status ReserveScratch(int32_t max_tokens, int32_t max_width) = 0;
  virtual absl::StatusOr<std::unique_ptr<CpuWeight>> Load(std::span<const WeightSegment> segments,
                                                          WeightUse use) = 0;
};

// threads >= 1. The context must outlive its weights.
std::unique_ptr<LinearContext> MakeLinearContext(Mode mode, int threads);

}  // namespace penstock::kernels::cpu
