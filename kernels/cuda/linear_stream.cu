#include <algorithm>
#include <array>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/linear_stream.cuh"
#include "kernels/cuda/linear_stream.h"
#include "kernels/cuda/linear_wide.cuh"

namespace penstock::kernels::cuda {
namespace {

using KernelFunction = void (*)(stream::Params);

struct Variant {
  StreamConfig config;
  int32_t threads = 0;
  KernelFunction kernels[3] = {};  // by LinearOutput
};

template <typename C>
Variant Describe(std::string_view name) {
  Variant v;
  v.config = {.name = name,
              .max_tokens = C::kTokens,
              .rows = C::kRows,
              .cluster = C::kCluster,
              .shared_bytes = C::kSharedBytes,
              .fuses_silu_up = C::kFusesSiluUp};
  v.threads = C::kThreads;
  return v;
}

template <typename C>
Variant MakeVariant(std::string_view name) {
  Variant v = Describe<C>(name);
  v.kernels[0] = stream::Kernel<C, LinearOutput::kBf16>;
  v.kernels[1] = stream::Kernel<C, LinearOutput::kFloat>;
  if constexpr (C::kFusesSiluUp) v.kernels[2] = stream::Kernel<C, LinearOutput::kSiluUp>;
  return v;
}

template <typename C>
Variant MakeWide(std::string_view name) {
  Variant v = Describe<C>(name);
  v.config.adapts_rows = true;
  v.kernels[0] = stream::wide::Kernel<C, LinearOutput::kBf16>;
  v.kernels[1] = stream::wide::Kernel<C, LinearOutput::kFloat>;
  v.kernels[2] = stream::wide::Kernel<C, LinearOutput::kSiluUp>;
  return v;
}

// Names: tokens, rows, blocks of a cluster, warps, elements of K a copy, stages. Those marked
// "shared" leave room for a block of the next kernel on the same multiprocessor (at most 113 KiB
// each); the others have more in flight, which measures better (H200).
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
      MakeWide<stream::wide::Config<4, 2, 8, 1, 64, 6>>("t32-r32-w8-s6"),
      MakeWide<stream::wide::Config<4, 3, 8, 1, 64, 4>>("t32-r48-w8-s4"),
      MakeWide<stream::wide::Config<4, 4, 8, 1, 64, 3>>("t32-r64-w8-s3"),
      MakeWide<stream::wide::Config<4, 4, 8, 2, 64, 3>>("t32-r64-c2-w8-s3"),
      MakeWide<stream::wide::Config<4, 6, 8, 2, 32, 4>>("t32-r96-c2-w8-k32-s4"),
      MakeWide<stream::wide::Config<8, 4, 8, 1, 32, 5>>("t64-r64-w8-k32-s5"),
      MakeWide<stream::wide::Config<8, 4, 8, 2, 32, 5>>("t64-r64-c2-w8-k32-s5"),
      MakeWide<stream::wide::Config<8, 4, 8, 4, 32, 4, 2>>("t64-r128-c4-w8-k32-s4"),
  };
  return variants;
}

constexpr int64_t kFewestRows = 16;  // of a tile: each reads all of x

// Of the GPU: multiprocessors come in groups, and 4 does not divide the size of each.
int32_t max_clusters_of_4 = 0;

bool Aligned16(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Uses, and points to, `attributes`.
cudaLaunchConfig_t LaunchOf(const Variant& v, int64_t clusters,
                            cudaLaunchAttribute (&attributes)[2]) {
  const int32_t cluster = v.config.cluster;
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t launch{};
  launch.gridDim = dim3(static_cast<unsigned>(clusters * cluster));
  launch.blockDim = dim3(static_cast<unsigned>(v.threads));
  launch.dynamicSmemBytes = static_cast<size_t>(v.config.shared_bytes);
  launch.attrs = attributes;
  launch.numAttrs = cluster > 1 ? 2 : 1;
  return launch;
}

// Weight rows of a tile: fewer than there is room for where that takes as many passes.
int64_t TileRows(const StreamConfig& config, int64_t n, int64_t clusters) {
  if (!config.adapts_rows) return config.rows;
  const int64_t passes = (n + config.rows * clusters - 1) / (config.rows * clusters);
  const int64_t even = (n + passes * clusters - 1) / (passes * clusters);
  return std::clamp<int64_t>((even + 1) / 2 * 2, kFewestRows, config.rows);
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
  const int32_t clusters = std::max(1, num_multiprocessors / config.cluster);
  return config.cluster == 4 && max_clusters_of_4 > 0 ? std::min(clusters, max_clusters_of_4)
                                                      : clusters;
}

double StreamBalance(const StreamConfig& config, int64_t n, int32_t num_multiprocessors) {
  const int64_t clusters = StreamMaxClusters(config, num_multiprocessors);
  const int64_t rows = TileRows(config, n, clusters);
  const int64_t tiles = (n + rows - 1) / rows;
  const int64_t passes = (tiles + clusters - 1) / clusters;
  return static_cast<double>(n) / (static_cast<double>(passes) * static_cast<double>(rows) *
                                   num_multiprocessors / config.cluster);
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
    if (v.config.cluster == 4) {
      cudaLaunchAttribute attributes[2] = {};
      cudaLaunchConfig_t launch = LaunchOf(v, 1, attributes);
      launch.attrs = &attributes[1];  // the cluster alone
      launch.numAttrs = 1;
      PENSTOCK_CUDA(cudaOccupancyMaxActiveClusters(&max_clusters_of_4, v.kernels[0], &launch));
    }
  }
  return absl::OkStatus();
}

absl::Status RunStreamLinear(int config_index, const LinearCall& call, const StreamTuning& tuning,
                             cudaStream_t stream) {
  const auto index = static_cast<size_t>(config_index);
  const StreamConfig& config = StreamConfigs()[index];
  const int64_t most = StreamMaxClusters(config, tuning.num_multiprocessors);
  const int64_t halves = call.shape.output == LinearOutput::kSiluUp ? 2 : 1;  // of N
  const int64_t n = call.shape.n / halves;
  const int64_t tile_features = TileRows(config, call.shape.n, most) / halves;
  const int64_t clusters = std::min(most, (n + tile_features - 1) / tile_features);
  const Variant& v = Variants()[index];
  const stream::Params params = {.x = call.x,
                                 .weight = call.weight,
                                 .bias = call.bias,
                                 .out = call.out,
                                 .x_stride = call.x_stride,
                                 .out_stride = call.out_stride,
                                 .num_tokens = call.num_tokens,
                                 .n = static_cast<int32_t>(n),
                                 .k = static_cast<int32_t>(call.shape.k),
                                 .l2_prefetch_bytes = tuning.l2_prefetch_bytes,
                                 .tile_features = static_cast<int32_t>(tile_features)};
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t launch = LaunchOf(v, clusters, attributes);
  launch.stream = stream;
  return CudaStatus(
      cudaLaunchKernelEx(&launch, v.kernels[static_cast<size_t>(call.shape.output)], params),
      "stream linear");
}

}  // namespace penstock::kernels::cuda
