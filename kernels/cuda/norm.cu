// residual += x; out = RMSNorm(residual). At batch 1 this is all latency (65 times a step), so: a
// block a token, one 16-byte vector a thread where that fits, weights fetched before the wait for
// the earlier kernel, one barrier. With many tokens a block takes several, and asks for the next
// one's vectors before the barrier.
#include <algorithm>

#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/vector.cuh"

namespace penstock::kernels::cuda {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kWarp = 32;

struct NormArgs {
  const __nv_bfloat16* x;
  __nv_bfloat16* residual;
  const float* weight;
  __nv_bfloat16* out;
  int64_t segment_stride;  // elements between x's segments
  int num_segments;
  int num_tokens;
  int hidden;
  float epsilon;
};

// The sum over the block, to all threads. `partial` is not used again before a later barrier.
__device__ __forceinline__ float BlockSum(float value, float* partial) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = value;
  __syncthreads();
  const int lane = threadIdx.x % kWarp;
  value = lane < blockDim.x / kWarp ? partial[lane] : 0;
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

// A vector of the residual and of x's first segment.
struct Operands {
  uint4 residual, x;
};

__device__ __forceinline__ Operands LoadOperands(const NormArgs& args, int64_t at) {
  Operands operands;
  operands.residual = LoadVector(args.residual + at);
  if (args.x != nullptr) operands.x = LoadVector(args.x + at);
  return operands;
}

// residual[at ..] + x's segments there, rounded to bf16 and stored if anything was added.
__device__ __forceinline__ void AddAt(const NormArgs& args, int64_t at, const Operands& operands,
                                      float (&sum)[kVector]) {
  Unpack(operands.residual, sum);
  if (args.x == nullptr) return;
  uint4 next = operands.x;
  for (int s = 0; s < args.num_segments; ++s) {
    float addend[kVector];
    Unpack(next, addend);
    if (s + 1 < args.num_segments) next = LoadVector(args.x + at + (s + 1) * args.segment_stride);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum[i] += addend[i];
  }
  const uint4 rounded = Pack(sum);
  StoreVector(args.residual + at, rounded);
  Unpack(rounded, sum);
}

template <int kVectorsPerThread>
__global__ void __launch_bounds__(kMaxThreads) AddRmsNormKernel(const NormArgs args) {
  __shared__ float partial[2][kWarp];
  LetNextStart();
  int column[kVectorsPerThread];
  float weight[kVectorsPerThread][kVector];
#pragma unroll
  for (int v = 0; v < kVectorsPerThread; ++v) {
    column[v] = (v * blockDim.x + threadIdx.x) * kVector;
    if (column[v] < args.hidden && args.out != nullptr) {
      LoadFloats(args.weight + column[v], weight[v]);
    }
  }
  WaitForEarlier();
  Operands operands[kVectorsPerThread];
  auto load = [&](int64_t token) {
#pragma unroll
    for (int v = 0; v < kVectorsPerThread; ++v) {
      if (column[v] < args.hidden && token < args.num_tokens) {
        operands[v] = LoadOperands(args, token * args.hidden + column[v]);
      }
    }
  };
  load(blockIdx.x);
  int parity = 0;
  for (int64_t t = blockIdx.x; t < args.num_tokens; t += gridDim.x, parity ^= 1) {
    float sum[kVectorsPerThread][kVector];
    float squares = 0;
#pragma unroll
    for (int v = 0; v < kVectorsPerThread; ++v) {
      if (column[v] >= args.hidden) continue;
      AddAt(args, t * args.hidden + column[v], operands[v], sum[v]);
#pragma unroll
      for (int i = 0; i < kVector; ++i) squares += sum[v][i] * sum[v][i];
    }
    load(t + gridDim.x);
    if (args.out == nullptr) continue;
    const float mean = BlockSum(squares, partial[parity]) / static_cast<float>(args.hidden);
    const float factor = rsqrtf(mean + args.epsilon);
#pragma unroll
    for (int v = 0; v < kVectorsPerThread; ++v) {
      if (column[v] >= args.hidden) continue;
#pragma unroll
      for (int i = 0; i < kVector; ++i) sum[v][i] *= factor * weight[v][i];
      StoreVector(args.out + t * args.hidden + column[v], Pack(sum[v]));
    }
  }
}

}  // namespace

absl::Status AddRmsNorm(cudaStream_t stream, const AddRmsNormParams& p) {
  if (p.group != nullptr) return Unimplemented("AddRmsNorm over several GPUs is not built yet");
  const int vectors = p.hidden / kVector;
  if (p.hidden % kVector != 0 || vectors < 1 || vectors > 4 * kMaxThreads) {
    return InvalidArgument(
        "hidden size {} is not supported on the GPU: it must be a multiple of {}"
        ", at most {}",
        p.hidden, kVector, 4 * kMaxThreads * kVector);
  }
  if (p.num_tokens == 0) return absl::OkStatus();
  const int per_thread = vectors <= kMaxThreads ? 1 : vectors <= 2 * kMaxThreads ? 2 : 4;
  const int threads = ((vectors + per_thread - 1) / per_thread + kWarp - 1) / kWarp * kWarp;
  // Past what runs at a time on an H100's multiprocessors a block takes several tokens.
  const int max_blocks = 132 * std::min(16, 2048 / threads);
  const NormArgs args = {static_cast<const __nv_bfloat16*>(p.x),
                         static_cast<__nv_bfloat16*>(p.residual),
                         p.weight,
                         static_cast<__nv_bfloat16*>(p.out),
                         static_cast<int64_t>(p.num_tokens) * p.hidden,
                         p.num_k_segments,
                         p.num_tokens,
                         p.hidden,
                         p.epsilon};
  const LaunchShape shape = {dim3(std::min(p.num_tokens, max_blocks)), dim3(threads)};
  auto* kernel = per_thread == 1   ? &AddRmsNormKernel<1>
                 : per_thread == 2 ? &AddRmsNormKernel<2>
                                   : &AddRmsNormKernel<4>;
  return LaunchDependent(stream, shape, kernel, args);
}

}  // namespace penstock::kernels::cuda
