// Linear layers on the GPU: out = x * weight^T (+ bias), bf16 in, float32 accumulation.
//
// Two ways, chosen per (shape, number of tokens) by measurement: own kernels that stream the weight
// once through shared memory (linear_stream.h), for few tokens, and cuBLASLt (linear_lt.h).
// Measured choices are kept on disk (linear_cache.h), so that only the first start on a kind of GPU
// pays for them.
//
// Example:
//   ASSIGN_OR_RETURN(auto linear, Linear::Create({}));
//   RETURN_IF_ERROR(linear->Plan(linears, {1, 2, 4, 8, 16, 32}));
//   RETURN_IF_ERROR(linear->Run({.shape = qkv, .num_tokens = 4, .x = x, ...}, stream));
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace penstock::kernels::cuda {

enum class LinearOutput : uint8_t {
  kBf16,    // out[M, N] bf16
  kFloat,   // out[M, N] float32: logits
  kSiluUp,  // weight = [gate; up], N = 2F: out[M, F] = bf16(silu(gate) * up), both from float32
};

// A linear layer without its data: weight [n, k] row-major and packed.
struct LinearShape {
  int64_t n = 0;
  int64_t k = 0;
  LinearOutput output = LinearOutput::kBf16;
  // S > 1: K is cut in S equal parts whose products are written apart, out[S, M, N], for a kernel
  // after it to add: where few tokens make few tiles of output, S times as many blocks share K,
  // without a kernel of their own to add up. Not with kSiluUp.
  int32_t k_segments = 1;
  friend auto operator<=>(const LinearShape&, const LinearShape&) = default;
};

// Device pointers; strides in elements. A view of some rows of a weight is a pointer to its first
// row and a smaller n.
struct LinearCall {
  LinearShape shape;
  int32_t num_tokens = 0;            // M
  const __nv_bfloat16* x = nullptr;  // [M, K]
  int64_t x_stride = 0;
  const __nv_bfloat16* weight = nullptr;  // [N, K], packed
  const float* bias = nullptr;            // [N] or null; of the first segment; not with kSiluUp
  void* out = nullptr;                    // [M, N] ([S, M, N], packed), or [M, N/2] for kSiluUp
  int64_t out_stride = 0;
};

struct PlannedLinear {
  LinearShape shape;
  int32_t max_tokens = 0;  // M of the largest call
};

struct LinearOptions {
  std::string cache_directory;  // of measured choices; empty: $XDG_CACHE_HOME or ~/.cache +
                                // /penstock/cublaslt
  bool use_cache = true;
  bool measure = true;  // false: the first heuristic of each
  size_t workspace_bytes = size_t{32} << 20;
};

// Owns the cuBLASLt handle, its workspace and the table of choices. One thread; calls on one stream
// at a time, since they share the workspace.
class Linear {
 public:
  // On the current device. RESOURCE_EXHAUSTED without memory for the workspace, INTERNAL without
  // cuBLASLt.
  static absl::StatusOr<std::unique_ptr<Linear>> Create(const LinearOptions& options);
  virtual ~Linear() = default;

  // Chooses how to run each shape at each of `exact_tokens` (the sizes of the decode graphs) and at
  // a ladder of sizes up to its max_tokens, of which any other number takes the next one. Measures
  // what the cache does not know, on temporary device memory for the largest weight (without it,
  // the heuristics' first). Synchronises. May be called again for further shapes.
  virtual absl::Status Plan(std::span<const PlannedLinear> linears,
                            std::span<const int32_t> exact_tokens) = 0;

  // Queues one linear on `stream`; no allocation, no synchronisation, capturable in a graph. Works
  // unplanned too (by heuristics). kSiluUp only where FusesSiluUp says so (else
  // FAILED_PRECONDITION): elsewhere call kBf16 with the same n and k, then the activation.
  // INVALID_ARGUMENT names a size that contradicts the others.
  virtual absl::Status Run(const LinearCall& call, cudaStream_t stream) = 0;
  virtual bool FusesSiluUp(const LinearShape& shape, int32_t num_tokens) const = 0;
  // The k_segments that were measured best for the rest of `shape`; 1 if none were planned.
  virtual int32_t BestSegments(const LinearShape& shape, int32_t num_tokens) const = 0;

  // What Run would do, for logs and tests: "stream r32 ..., 8.1 us" or "cublaslt ...".
  virtual std::string Describe(const LinearShape& shape, int32_t num_tokens) const = 0;
};

}  // namespace penstock::kernels::cuda
