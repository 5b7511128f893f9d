#include <algorithm>
#include <array>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/linear_stream.cuh"
#include "kernels/cuda/linear_stream.h"

namespace penstock::kernels::cuda {
namespace {

using KernelFunction = void (*)(stream::Params);

struct Variant {
  StreamConfig config;
  int32_t threads = 0;
  KernelFunction kernels[3] = {};  // by LinearOutput
};

template <typename C>
Variant MakeVariant(std::string_view name) {
  Variant v;
  v.config = {.name = name,
              .max_tokens = C::kTokens,
              .rows = C::kRows,
              .cluster = C::kCluster,
              .shared_bytes = C::kSharedBytes,
              .fuses_silu_up = C::kFusesSiluUp};
  v.threads = C::kThreads;
  v.kernels[0] = stream::Kernel<C, LinearOutput::kBf16>;
  v.kernels[1] = stream::Kernel<C, LinearOutput::kFloat>;
  if constexpr (C::kFusesSiluUp) v.kernels[2] = stream::Kernel<C, LinearOutput::kSiluUp>;
  return v;
}

// Names: tokens, rows, warps, stages. Those marked "shared" leave room for a block of the next
// kernel on the same multiprocessor (at most 113 KiB each); the others have more in flight, which
// measures better (H200).
const auto& Variants() {
  static const std::array variants = {
      MakeVariant<stream::Config<1, 2, 8, 1, 64, 5>>("t8-r32-w8-s5"),
      MakeVariant<stream::Config<1, 3, 8, 1, 64, 3>>("t8-r48-w8-s3"),
      MakeVariant<stream::Config<1, 1, 16, 1, 64, 4>>("t8-r16-w16-s4"),
      MakeVariant<stream::Config<1, 2, 16, 1, 64, 2>>("t8-r32-w16-s2"),
      MakeVariant<stream::Config<1, 2, 4, 1, 64, 5>>("t8-r32-w4-s5-shared"),
      MakeVariant<stream::Config<1, 1, 8, 1, 64, 4>>("t8-r16-w8-s4-shared"),
      MakeVariant<stream::Config<1, 4, 8, 2, 64, 2>>("t8-r64-c2-w8-s2"),
      MakeVariant<stream::Config<2, 2, 8, 1, 64, 4>>("t16-r32-w8-s4"),
      MakeVariant<stream::Config<2, 3, 8, 1, 64, 3>>("t16-r48-w8-s3"),
  };
  return variants;
}

bool Aligned16(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

int64_t Features(const LinearShape& shape) {
  return shape.output == LinearOutput::kSiluUp ? shape.n / 2 : shape.n;
}

}  // namespace

std::span<const StreamConfig> StreamConfigs() {
  static const auto configs = [] {
    std::vector<StreamConfig> result;
    for (const Variant& v : Variants()) result.push_back(v.config);
    return result;
  }();
  return configs;
}

int32_t StreamMaxClusters(const StreamConfig& config, int32_t num_multiprocessors) {
  return std::max(1, num_multiprocessors / config.cluster);
}

double StreamBalance(const StreamConfig& config, int64_t n, int32_t num_multiprocessors) {
  const int64_t clusters = StreamMaxClusters(config, num_multiprocessors);
  const int64_t tiles = (n + config.rows - 1) / config.rows;
  const int64_t passes = (tiles + clusters - 1) / clusters;
  return static_cast<double>(n) /
         (static_cast<double>(passes) * config.rows * num_multiprocessors / config.cluster);
}

bool StreamSupports(const StreamConfig& config, const LinearCall& call) {
  return call.num_tokens <= config.max_tokens && call.shape.k % 8 == 0 && call.x_stride % 8 == 0 &&
         call.shape.n < (int64_t{1} << 30) && call.shape.k < (int64_t{1} << 30) &&
         Aligned16(call.x) && Aligned16(call.weight) &&
         (call.shape.output != LinearOutput::kSiluUp || config.fuses_silu_up);
}

absl::Status InitStreamLinear() {
  for (const Variant& v : Variants()) {
    for (const KernelFunction kernel : v.kernels) {
      if (kernel == nullptr) continue;
      const void* const function = reinterpret_cast<const void*>(kernel);
      PENSTOCK_CUDA(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         v.config.shared_bytes));
      // One split of the L1 for all kernels of a step: another would have to wait for an empty
      // multiprocessor.
      PENSTOCK_CUDA(cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout,
                                         cudaSharedmemCarveoutMaxShared));
    }
  }
  return absl::OkStatus();
}

absl::Status RunStreamLinear(int config_index, const LinearCall& call, const StreamTuning& tuning,
                             cudaStream_t stream) {
  const auto index = static_cast<size_t>(config_index);
  const StreamConfig& config = StreamConfigs()[index];
  const int64_t tiles = (call.shape.n + config.rows - 1) / config.rows;
  const int64_t clusters =
      std::min<int64_t>(tiles, StreamMaxClusters(config, tuning.num_multiprocessors));
  const Variant& v = Variants()[index];
  const stream::Params params = {.x = call.x,
                                 .weight = call.weight,
                                 .bias = call.bias,
                                 .out = call.out,
                                 .x_stride = call.x_stride,
                                 .out_stride = call.out_stride,
                                 .num_tokens = call.num_tokens,
                                 .n = static_cast<int32_t>(Features(call.shape)),
                                 .k = static_cast<int32_t>(call.shape.k),
                                 .l2_prefetch_bytes = tuning.l2_prefetch_bytes};
  const int32_t cluster = config.cluster;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t launch{};
  launch.gridDim = dim3(static_cast<unsigned>(clusters * cluster));
  launch.blockDim = dim3(static_cast<unsigned>(v.threads));
  launch.dynamicSmemBytes = static_cast<size_t>(v.config.shared_bytes);
  launch.stream = stream;
  launch.attrs = attributes;
  launch.numAttrs = cluster > 1 ? 2 : 1;
  return CudaStatus(
      cudaLaunchKernelEx(&launch, v.kernels[static_cast<size_t>(call.shape.output)], params),
      "stream linear");
}

}  // namespace penstock::kernels::cuda
