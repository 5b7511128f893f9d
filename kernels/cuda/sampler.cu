#include "kernels/cuda/device.h"
#include "kernels/cuda/sampler.h"
#include "kernels/cuda/sampler_row.cuh"
#include "kernels/cuda/vector.cuh"

namespace penstock::kernels::cuda {
namespace {

template <int kBlocks>
__global__ void __launch_bounds__(kSamplerThreads, kBlocks > 1 ? 2 : 1)
    SampleKernel(const SampleArgs args) {
  LetNextStart();
  WaitForEarlier();
  const int64_t index = blockIdx.x / kBlocks;
  const DeviceSampleRow row = args.rows[index];
  if (row.slot < 0) return;
  float* values;
  if constexpr (kBlocks > 1) {
    values = reinterpret_cast<float*>(SharedMemory() + sizeof(SamplerScratch));
  } else {
    values = args.workspace + index * SliceSize(args.vocab_size, 1);
  }
  SamplerTeam<kBlocks> team(args.vocab_size, values);
  SampleOneRow(team, row, args, index);
}

using Kernel = void (*)(SampleArgs);

Kernel KernelOf(const SamplerPlan& plan) {
  return plan.blocks_per_row > 1 ? &SampleKernel<kMaxBlocksPerRow> : &SampleKernel<1>;
}

}  // namespace

absl::StatusOr<SamplerPlan> PlanSampler(int32_t vocab_size) {
  int device = 0;
  int major = 0;
  int max_shared = 0;
  PENSTOCK_CUDA(cudaGetDevice(&device));
  PENSTOCK_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  PENSTOCK_CUDA(
      cudaDeviceGetAttribute(&max_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  SamplerPlan plan = {.vocab_size = vocab_size, .shared_bytes = sizeof(SamplerScratch)};
  const int64_t with_slice =
      sizeof(SamplerScratch) + sizeof(float) * SliceSize(vocab_size, kMaxBlocksPerRow);
  if (major >= 9 && with_slice <= max_shared) {
    plan.blocks_per_row = kMaxBlocksPerRow;
    plan.shared_bytes = static_cast<int32_t>(with_slice);
  } else {
    plan.workspace_bytes_per_row = sizeof(float) * SliceSize(vocab_size, 1);
  }
  PENSTOCK_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(KernelOf(plan)),
                                     cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     plan.shared_bytes));
  return plan;
}

absl::Status Sample(cudaStream_t stream, const SamplerPlan& plan, const SampleLaunch& launch) {
  if (launch.count == 0) return absl::OkStatus();
  const SampleArgs args = {.logits = launch.logits,
                           .rows = launch.rows,
                           .side = launch.side,
                           .ids = launch.tokens.ids,
                           .ids_stride = launch.tokens.stride,
                           .ids_out = launch.ids_out,
                           .logprobs_out = launch.logprobs_out,
                           .workspace = static_cast<float*>(launch.workspace),
                           .vocab_size = plan.vocab_size};
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = plan.blocks_per_row;
  attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(launch.count * plan.blocks_per_row);
  config.blockDim = dim3(kSamplerThreads);
  config.dynamicSmemBytes = plan.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  // Blocks share a row only where kernels launch dependently too.
  config.numAttrs = plan.blocks_per_row > 1 ? 2 : LaunchesDependent() ? 1 : 0;
  return CudaStatus(cudaLaunchKernelEx(&config, KernelOf(plan), args), "sampler launch");
}

}  // namespace penstock::kernels::cuda
