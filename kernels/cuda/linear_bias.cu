#include "kernels/cuda/device.h"
#include "kernels/cuda/linear_lt.h"
#include "kernels/cuda/vector.cuh"

namespace penstock::kernels::cuda {
namespace {

constexpr int kThreads = 256;

__device__ void Add(float& value, float bias) { value += bias; }
__device__ void Add(__nv_bfloat16& value, float bias) {
  value = __float2bfloat16(__bfloat162float(value) + bias);
}

// Grid: blocks of kThreads features, tokens.
template <typename T>
__global__ void AddBiasKernel(T* out, int64_t out_stride, const float* bias, int64_t n) {
  WaitForEarlier();
  LetNextStart();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < n) Add(out[blockIdx.y * out_stride + i], bias[i]);
}

}  // namespace

absl::Status AddBias(const LinearCall& call, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((call.shape.n + kThreads - 1) / kThreads);
  // The grid's second dimension ends at 65535.
  if (call.num_tokens > 65535) return InvalidArgument("{} tokens at once", call.num_tokens);
  const LaunchShape shape = {dim3(blocks, static_cast<unsigned>(call.num_tokens)), dim3(kThreads)};
  if (call.shape.output == LinearOutput::kFloat) {
    return LaunchDependent(stream, shape, AddBiasKernel<float>, static_cast<float*>(call.out),
                           call.out_stride, call.bias, call.shape.n);
  }
  return LaunchDependent(stream, shape, AddBiasKernel<__nv_bfloat16>,
                         static_cast<__nv_bfloat16*>(call.out), call.out_stride, call.bias,
                         call.shape.n);
}

}  // namespace penstock::kernels::cuda
