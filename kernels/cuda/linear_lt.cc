#include "kernels/cuda/linear_lt.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "kernels/cuda/device.h"

namespace penstock::kernels::cuda {
namespace {

absl::Status LtStatus(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return Internal("{}: cuBLASLt says {}", call, cublasLtGetStatusName(status));
}

// What the rows of an operand, and its segments, begin at multiples of.
int64_t RowBytes(const LinearShape& shape, int64_t stride) {
  return 2 * std::gcd(stride, shape.k / shape.k_segments);
}

absl::Status SetBatch(cublasLtMatrixLayoutOpaque_t* layout, int32_t count, int64_t stride) {
  RETURN_IF_ERROR(LtStatus(cublasLtMatrixLayoutSetAttribute(
                               layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof(count)),
                           "batch count"));
  return LtStatus(cublasLtMatrixLayoutSetAttribute(
                      layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof(stride)),
                  "batch stride");
}

// The largest power of two up to 256 that divides the address and the row's bytes.
uint32_t Alignment(const void* pointer, int64_t row_bytes) {
  const uint64_t bits =
      reinterpret_cast<uintptr_t>(pointer) | static_cast<uint64_t>(row_bytes) | 256;
  return static_cast<uint32_t>(bits & (~bits + 1));
}

}  // namespace

// cuBLASLt's descriptions of one call.
struct Lt::Problem {
  cublasLtMatmulDescOpaque_t operation;
  cublasLtMatrixLayoutOpaque_t weight, x, out;

  static absl::StatusOr<Problem> Make(const LinearShape& shape, int32_t num_tokens,
                                      int64_t x_stride, int64_t out_stride) {
    if (shape.output == LinearOutput::kSiluUp) {
      return FailedPrecondition("cuBLASLt does not fuse the gated activation");
    }
    Problem p;
    const int64_t segment = shape.k / shape.k_segments;
    const auto n = static_cast<uint64_t>(shape.n), k = static_cast<uint64_t>(segment);
    const auto m = static_cast<uint64_t>(num_tokens);
    const cudaDataType_t out_type = shape.output == LinearOutput::kFloat ? CUDA_R_32F : CUDA_R_16BF;
    RETURN_IF_ERROR(LtStatus(cublasLtMatmulDescInit(&p.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                             "matmul description"));
    const cublasOperation_t transpose = CUBLAS_OP_T;
    RETURN_IF_ERROR(
        LtStatus(cublasLtMatmulDescSetAttribute(&p.operation, CUBLASLT_MATMUL_DESC_TRANSA,
                                                &transpose, sizeof(transpose)),
                 "transpose"));
    RETURN_IF_ERROR(
        LtStatus(cublasLtMatrixLayoutInit(&p.weight, CUDA_R_16BF, k, n, shape.k), "weight layout"));
    RETURN_IF_ERROR(
        LtStatus(cublasLtMatrixLayoutInit(&p.x, CUDA_R_16BF, k, m, x_stride), "x layout"));
    RETURN_IF_ERROR(
        LtStatus(cublasLtMatrixLayoutInit(&p.out, out_type, n, m, out_stride), "out layout"));
    if (shape.k_segments > 1) {  // a batch of products, each of a part of K
      RETURN_IF_ERROR(SetBatch(&p.weight, shape.k_segments, segment));
      RETURN_IF_ERROR(SetBatch(&p.x, shape.k_segments, segment));
      RETURN_IF_ERROR(SetBatch(&p.out, shape.k_segments, num_tokens * out_stride));
    }
    return p;
  }

  // The weight's, x's and out's alignment in bytes are at least these.
  std::vector<LtAlgorithm> Ask(cublasLtHandle_t handle, size_t workspace_bytes,
                               uint32_t weight_align, uint32_t x_align, uint32_t out_align,
                               int count) {
    cublasLtMatmulPreferenceOpaque_t preference;
    cublasLtMatmulPreferenceInit(&preference);
    const uint64_t workspace = workspace_bytes;
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t name, const auto& value) {
      cublasLtMatmulPreferenceSetAttribute(&preference, name, &value, sizeof(value));
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, weight_align);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, x_align);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out_align);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out_align);
    std::vector<cublasLtMatmulHeuristicResult_t> found(static_cast<size_t>(count));
    int num_found = 0;
    if (cublasLtMatmulAlgoGetHeuristic(handle, &operation, &weight, &x, &out, &out, &preference,
                                       count, found.data(), &num_found) != CUBLAS_STATUS_SUCCESS) {
      return {};
    }
    std::vector<LtAlgorithm> algorithms;
    for (int i = 0; i < num_found; ++i) {
      const auto& result = found[static_cast<size_t>(i)];
      if (result.state != CUBLAS_STATUS_SUCCESS) continue;
      static_assert(sizeof(LtAlgorithm) == sizeof(result.algo));
      std::memcpy(&algorithms.emplace_back(), &result.algo, sizeof(LtAlgorithm));
    }
    return algorithms;
  }
};

absl::StatusOr<std::unique_ptr<Lt>> Lt::Create(size_t workspace_bytes) {
  std::unique_ptr<Lt> lt(new Lt);
  RETURN_IF_ERROR(LtStatus(cublasLtCreate(&lt->handle_), "cublasLtCreate"));
  PENSTOCK_CUDA(cudaMalloc(&lt->workspace_, std::max<size_t>(workspace_bytes, 256)));
  lt->workspace_bytes_ = workspace_bytes;
  return lt;
}

Lt::~Lt() {
  if (workspace_ != nullptr) cudaFree(workspace_);
  if (handle_ != nullptr) cublasLtDestroy(handle_);
}

std::vector<LtAlgorithm> Lt::Candidates(const LinearShape& shape, int32_t num_tokens,
                                        int count) const {
  absl::StatusOr<Problem> problem = Problem::Make(shape, num_tokens, shape.k, shape.n);
  if (!problem.ok()) return {};
  const uint32_t align = std::min<uint32_t>(16, Alignment(nullptr, RowBytes(shape, shape.k)));
  const uint32_t out_align = std::min<uint32_t>(
      16, Alignment(nullptr, shape.n * (shape.output == LinearOutput::kFloat ? 4 : 2)));
  return problem->Ask(handle_, workspace_bytes_, align, align, out_align, count);
}

absl::Status Lt::Run(const LinearCall& call, const LtAlgorithm* algorithm, cudaStream_t stream) {
  ASSIGN_OR_RETURN(Problem problem,
                   Problem::Make(call.shape, call.num_tokens, call.x_stride, call.out_stride));
  const int64_t out_size = call.shape.output == LinearOutput::kFloat ? 4 : 2;
  const uint32_t weight_align = Alignment(call.weight, RowBytes(call.shape, call.shape.k));
  const uint32_t x_align = Alignment(call.x, RowBytes(call.shape, call.x_stride));
  const uint32_t out_align = Alignment(call.out, out_size * call.out_stride);
  const uint32_t least = std::min({weight_align, x_align, out_align});
  // Planned algorithms may rely on 16 bytes.
  if (algorithm == nullptr || least < 16) {
    const auto key = std::make_tuple(call.shape, call.num_tokens, call.x_stride, call.out_stride,
                                     static_cast<int32_t>(least));
    auto it = favourites_.find(key);
    if (it == favourites_.end()) {
      const std::vector<LtAlgorithm> found =
          problem.Ask(handle_, workspace_bytes_, least, least, least, 1);
      if (found.empty()) {
        return Internal("cuBLASLt has no algorithm for M {} N {} K {} at {} byte alignment",
                        call.num_tokens, call.shape.n, call.shape.k, least);
      }
      it = favourites_.emplace(key, found.front()).first;
    }
    algorithm = &it->second;
  }
  cublasLtMatmulAlgo_t algo;
  std::memcpy(&algo, algorithm, sizeof(algo));
  const float one = 1, zero = 0;
  return LtStatus(cublasLtMatmul(handle_, &problem.operation, &one, call.weight, &problem.weight,
                                 call.x, &problem.x, &zero, call.out, &problem.out, call.out,
                                 &problem.out, &algo, workspace_, workspace_bytes_, stream),
                  "cublasLtMatmul");
}

}  // namespace penstock::kernels::cuda
