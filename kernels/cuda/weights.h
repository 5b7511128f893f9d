// Weights on the GPU: bf16, [rows, cols], row-major and packed.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "kernels/ops.h"

namespace penstock::kernels::cuda {

class CudaWeight : public Weight {
 public:
  // `owned` null: a view of another weight.
  CudaWeight(const __nv_bfloat16* weight_data, int64_t num_rows, int64_t num_cols,
             std::unique_ptr<Buffer> owned);
  const __nv_bfloat16* const data;

 private:
  const std::unique_ptr<Buffer> owned_;
};

inline const CudaWeight& AsCuda(const Weight& weight) {
  return static_cast<const CudaWeight&>(weight);
}

// Takes weights from host memory to the GPU through two pinned buffers: while one is copied, the
// next rows are read (and dequantised) into the other. What is not bf16 is converted on the GPU.
// One thread, one stream, which outlives it.
class WeightUploader {
 public:
  static absl::StatusOr<std::unique_ptr<WeightUploader>> Create(cudaStream_t stream);
  ~WeightUploader();
  WeightUploader(const WeightUploader&) = delete;
  WeightUploader& operator=(const WeightUploader&) = delete;

  // The segments stacked by rows. Their memory may go once this returns; the copy ends in the
  // stream's order.
  absl::StatusOr<std::unique_ptr<CudaWeight>> Load(std::span<const WeightSegment> segments);

 private:
  struct Lane {
    std::unique_ptr<Buffer> pinned;
    std::unique_ptr<Buffer> raw;  // on the device: before conversion
    cudaEvent_t free = nullptr;   // what was in the lane has been used
  };

  explicit WeightUploader(cudaStream_t stream) : stream_(stream) {}
  absl::Status LoadRows(const WeightSegment& segment, int64_t row, int64_t count,
                        __nv_bfloat16* out);

  const cudaStream_t stream_;
  std::array<Lane, 2> lanes_;
  size_t next_lane_ = 0;
};

// Of kernels/random_weight.h's values.
absl::StatusOr<std::unique_ptr<CudaWeight>> MakeRandomWeight(int64_t rows, int64_t cols,
                                                             uint64_t seed, cudaStream_t stream);

}  // namespace penstock::kernels::cuda
