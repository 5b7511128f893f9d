// cuBLASLt products: out[M, N] = x[M, K] * weight[N, K]^T, as the column-major out^T = weight *
// x^T.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/linear.h"

namespace penstock::kernels::cuda {

// A cublasLtMatmulAlgo_t, which one version of cuBLAS may store and read again (cuBLAS manual).
using LtAlgorithm = std::array<uint64_t, 8>;

// Owns the handle and a workspace that all calls share: one stream at a time.
class Lt {
 public:
  static absl::StatusOr<std::unique_ptr<Lt>> Create(size_t workspace_bytes);
  ~Lt();
  Lt(const Lt&) = delete;
  Lt& operator=(const Lt&) = delete;

  // Up to `count` algorithms for packed, 16-byte aligned operands, the heuristics' favourite first;
  // empty if cuBLASLt has none.
  std::vector<LtAlgorithm> Candidates(const LinearShape& shape, int32_t num_tokens,
                                      int count) const;

  // `algorithm` null: the favourite for these very pointers and strides, looked up once. Does not
  // add the bias. INTERNAL if cuBLASLt refuses.
  absl::Status Run(const LinearCall& call, const LtAlgorithm* algorithm, cudaStream_t stream);

 private:
  Lt() = default;
  struct Problem;

  cublasLtHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
  size_t workspace_bytes_ = 0;
  std::map<std::tuple<LinearShape, int32_t, int64_t, int64_t, int32_t>, LtAlgorithm> favourites_;
};

// out[m][n] += bias[n], for [M, N] of bf16 or float32.
absl::Status AddBias(const LinearCall& call, cudaStream_t stream);

}  // namespace penstock::kernels::cuda
