// Embedding, gated activation, row gather: a 16-byte vector a thread.
#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/vector.cuh"

namespace penstock::kernels::cuda {
namespace {

constexpr int kThreads = 256;

int BlocksFor(int64_t vectors) { return static_cast<int>((vectors + kThreads - 1) / kThreads); }

struct EmbedArgs {
  const __nv_bfloat16* table;
  const int32_t* ids;
  int64_t ids_stride;
  const int32_t* slot_of_token;
  const int32_t* position_of_token;
  __nv_bfloat16* out;
  int64_t vocab;
  int64_t hidden;
  float scale;
};

__global__ void __launch_bounds__(kThreads) EmbedKernel(const EmbedArgs args) {
  LetNextStart();
  const int64_t token = blockIdx.x;
  const int64_t column = static_cast<int64_t>(blockIdx.y * kThreads + threadIdx.x) * kVector;
  if (column >= args.hidden) return;
  const int slot = args.slot_of_token[token];
  const int64_t id =
      slot < 0 ? -1 : args.ids[slot * args.ids_stride + args.position_of_token[token]];
  uint4 value = {0, 0, 0, 0};
  if (id >= 0 && id < args.vocab) {
    value = LoadVector(args.table + id * args.hidden + column);
    if (args.scale != 1.0f) {
      float scaled[kVector];
      Unpack(value, scaled);
#pragma unroll
      for (int i = 0; i < kVector; ++i) scaled[i] *= args.scale;
      value = Pack(scaled);
    }
  }
  StoreVector(args.out + token * args.hidden + column, value);
}

__global__ void __launch_bounds__(kThreads)
    GatedActivationKernel(const __nv_bfloat16* x, __nv_bfloat16* out, int64_t width) {
  LetNextStart();
  const int64_t token = blockIdx.x;
  const int64_t column = static_cast<int64_t>(blockIdx.y * kThreads + threadIdx.x) * kVector;
  WaitForEarlier();
  if (column >= width) return;
  const __nv_bfloat16* in = x + token * 2 * width + column;
  const uint4 packed_gate = LoadVector(in);
  const uint4 packed_up = LoadVector(in + width);
  float gate[kVector], up[kVector];
  Unpack(packed_gate, gate);
  Unpack(packed_up, up);
#pragma unroll
  for (int i = 0; i < kVector; ++i) up[i] *= __fdividef(gate[i], 1.0f + __expf(-gate[i]));
  StoreVector(out + token * width + column, Pack(up));
}

__global__ void __launch_bounds__(kThreads)
    GatherRowsKernel(const __nv_bfloat16* x, const int32_t* index, __nv_bfloat16* out,
                     int64_t hidden) {
  LetNextStart();
  const int64_t column = static_cast<int64_t>(blockIdx.y * kThreads + threadIdx.x) * kVector;
  const int64_t row = index[blockIdx.x];
  WaitForEarlier();
  if (column >= hidden) return;
  const uint4 value = row < 0 ? uint4{0, 0, 0, 0} : LoadVector(x + row * hidden + column);
  StoreVector(out + blockIdx.x * hidden + column, value);
}

absl::Status CheckWidth(int64_t width) {
  if (width > 0 && width % kVector == 0) return absl::OkStatus();
  return InvalidArgument("width {} is not supported on the GPU: it must be a multiple of {}", width,
                         kVector);
}

}  // namespace

absl::Status Embed(cudaStream_t stream, const __nv_bfloat16* table, int64_t vocab, int64_t hidden,
                   const EmbedParams& p) {
  RETURN_IF_ERROR(CheckWidth(hidden));
  if (p.batch->num_tokens == 0) return absl::OkStatus();
  const EmbedArgs args = {table,
                          p.tokens.ids,
                          p.tokens.stride,
                          p.batch->slot_of_token,
                          p.batch->position_of_token,
                          static_cast<__nv_bfloat16*>(p.out),
                          vocab,
                          hidden,
                          p.scale};
  // Plainly: see the order of a step in ops.h.
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(p.batch->num_tokens, BlocksFor(hidden / kVector));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  return CudaStatus(cudaLaunchKernelEx(&config, &EmbedKernel, args), "embed launch");
}

absl::Status GatedActivation(cudaStream_t stream, const GatedActivationParams& p) {
  RETURN_IF_ERROR(CheckWidth(p.width));
  if (p.num_tokens == 0) return absl::OkStatus();
  const LaunchShape shape = {dim3(p.num_tokens, BlocksFor(p.width / kVector)), dim3(kThreads)};
  return LaunchDependent(stream, shape, &GatedActivationKernel,
                         static_cast<const __nv_bfloat16*>(p.x), static_cast<__nv_bfloat16*>(p.out),
                         int64_t{p.width});
}

absl::Status GatherRows(cudaStream_t stream, const GatherRowsParams& p) {
  RETURN_IF_ERROR(CheckWidth(p.hidden));
  if (p.count == 0) return absl::OkStatus();
  const LaunchShape shape = {dim3(p.count, BlocksFor(p.hidden / kVector)), dim3(kThreads)};
  return LaunchDependent(stream, shape, &GatherRowsKernel, static_cast<const __nv_bfloat16*>(p.x),
                         p.index, static_cast<__nv_bfloat16*>(p.out), int64_t{p.hidden});
}

}  // namespace penstock::kernels::cuda
