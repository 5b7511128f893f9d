#include "kernels/cuda/linear_measure.h"

#include <algorithm>
#include <limits>

#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"

namespace penstock::kernels::cuda {
namespace {

constexpr size_t kColdBytes = size_t{192} << 20;  // three times the L2 of the largest GPU
constexpr int kRounds = 2;
constexpr uint64_t kSeed = 1;
// From here on a product is bound by computing, and the card's clock by what it draws: a candidate
// runs for so long a round.
constexpr int32_t kManyTokens = 384;
constexpr float kManyTokensUs = 3000;
constexpr double kFlopsPerUs = 7e8;  // about an H200's

}  // namespace

absl::StatusOr<std::unique_ptr<LinearMeasurer>> LinearMeasurer::Create(size_t weight_bytes,
                                                                       size_t x_bytes,
                                                                       size_t out_bytes) {
  std::unique_ptr<LinearMeasurer> m(new LinearMeasurer);
  m->weight_bytes_ = std::max(weight_bytes, kColdBytes);
  PENSTOCK_CUDA(cudaStreamCreateWithFlags(&m->stream_, cudaStreamNonBlocking));
  PENSTOCK_CUDA(cudaEventCreate(&m->begin_));
  PENSTOCK_CUDA(cudaEventCreate(&m->end_));
  // Random values: equal ones would switch few transistors, and the card would clock higher than it
  // will.
  const auto allocate = [&](char** pointer, size_t bytes) -> absl::Status {
    const cudaError_t error = cudaMalloc(pointer, std::max<size_t>(bytes, 256));
    if (error != cudaSuccess) cudaGetLastError();  // not sticky: what comes next must not see it
    RETURN_IF_ERROR(CudaStatus(error, "scratch for timing linears"));
    return FillRandomWeight(m->stream_, reinterpret_cast<__nv_bfloat16*>(*pointer),
                            static_cast<int64_t>(bytes / sizeof(__nv_bfloat16)), kSeed, 0);
  };
  RETURN_IF_ERROR(allocate(&m->weights_, m->weight_bytes_));
  RETURN_IF_ERROR(allocate(&m->x_, x_bytes));
  RETURN_IF_ERROR(allocate(&m->out_, out_bytes));
  return m;
}

LinearMeasurer::~LinearMeasurer() {
  if (stream_ != nullptr) cudaStreamSynchronize(stream_);
  for (char* pointer : {weights_, x_, out_}) {
    if (pointer != nullptr) cudaFree(pointer);
  }
  if (begin_ != nullptr) cudaEventDestroy(begin_);
  if (end_ != nullptr) cudaEventDestroy(end_);
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

absl::StatusOr<float> LinearMeasurer::Time(const LinearShape& shape, int32_t num_tokens,
                                           const Run& run) {
  const auto bytes = static_cast<size_t>(shape.n * shape.k * 2);
  const size_t copies = std::max<size_t>(1, weight_bytes_ / bytes);
  const double many_us = 2.0 * num_tokens * static_cast<double>(shape.n * shape.k) / kFlopsPerUs;
  const int launches = num_tokens >= kManyTokens
                           ? static_cast<int>(std::clamp(kManyTokensUs / many_us, 2.0, 256.0))
                           : static_cast<int>(std::clamp<size_t>(2 * kColdBytes / bytes, 3, 16));
  LinearCall call = {.shape = shape,
                     .num_tokens = num_tokens,
                     .x = reinterpret_cast<const __nv_bfloat16*>(x_),
                     .x_stride = shape.k,
                     .out = out_,
                     .out_stride = shape.output == LinearOutput::kSiluUp ? shape.n / 2 : shape.n};
  size_t copy = 0;
  const auto launch = [&] {
    call.weight = reinterpret_cast<const __nv_bfloat16*>(weights_ + copy++ % copies * bytes);
    return run(call, stream_);
  };
  RETURN_IF_ERROR(launch());  // loads the code
  float best = std::numeric_limits<float>::max();
  for (int round = 0; round < kRounds; ++round) {
    PENSTOCK_CUDA(cudaEventRecord(begin_, stream_));
    for (int i = 0; i < launches; ++i) RETURN_IF_ERROR(launch());
    PENSTOCK_CUDA(cudaEventRecord(end_, stream_));
    PENSTOCK_CUDA(cudaEventSynchronize(end_));
    float ms = 0;
    PENSTOCK_CUDA(cudaEventElapsedTime(&ms, begin_, end_));
    const float us = ms * 1000 / static_cast<float>(launches);
    best = num_tokens >= kManyTokens ? us : std::min(best, us);
  }
  return best;
}

}  // namespace penstock::kernels::cuda
