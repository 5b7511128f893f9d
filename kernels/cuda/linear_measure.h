// Times candidates for a linear layer on scratch memory of its own.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/linear.h"

namespace penstock::kernels::cuda {

class LinearMeasurer {
 public:
  // Scratch for weights, x and out of up to these sizes. RESOURCE_EXHAUSTED if the GPU has not got
  // it.
  static absl::StatusOr<std::unique_ptr<LinearMeasurer>> Create(size_t weight_bytes, size_t x_bytes,
                                                                size_t out_bytes);
  ~LinearMeasurer();
  LinearMeasurer(const LinearMeasurer&) = delete;
  LinearMeasurer& operator=(const LinearMeasurer&) = delete;

  // Microseconds that `run` takes, one after the other as in a step, each on a weight that is not
  // in L2. Fails as `run` does, or as the device does, which is final.
  using Run = std::function<absl::Status(const LinearCall&, cudaStream_t)>;
  absl::StatusOr<float> Time(const LinearShape& shape, int32_t num_tokens, const Run& run);

 private:
  LinearMeasurer() = default;

  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  char *weights_ = nullptr, *x_ = nullptr, *out_ = nullptr;
  size_t weight_bytes_ = 0;
};

}  // namespace penstock::kernels::cuda
