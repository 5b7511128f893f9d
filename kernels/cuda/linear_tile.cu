#include <algorithm>
#include <array>
#include <tuple>

#include "kernels/cuda/device.h"
#include "kernels/cuda/linear_tile.cuh"
#include "kernels/cuda/linear_tile.h"

namespace penstock::kernels::cuda {
namespace {

using KernelFunction = void (*)(tile::Params);

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
              .fuses_silu_up = C::kFusesSiluUp,
              .wgmma = true};
  v.threads = C::kThreads;
  v.kernels[0] = tile::Kernel<C, LinearOutput::kBf16>;
  v.kernels[1] = tile::Kernel<C, LinearOutput::kFloat>;
  if constexpr (C::kFusesSiluUp) v.kernels[2] = tile::Kernel<C, LinearOutput::kSiluUp>;
  return v;
}

// Names: tokens, rows, cluster, stages.
const auto& Variants() {
  static const std::array variants = {
      MakeVariant<tile::Config<16, 1, 2, 9>>("tile16-r64-c2-s9"),
      MakeVariant<tile::Config<16, 1, 2, 20>>("tile16-r64-c2-s20"),
      MakeVariant<tile::Config<16, 2, 4, 5>>("tile16-r128-c4-s5"),
      MakeVariant<tile::Config<16, 2, 4, 11>>("tile16-r128-c4-s11"),
      MakeVariant<tile::Config<16, 3, 4, 7>>("tile16-r192-c4-s7"),
      MakeVariant<tile::Config<32, 1, 2, 8>>("tile32-r64-c2-s8"),
      MakeVariant<tile::Config<32, 1, 2, 17>>("tile32-r64-c2-s17"),
      MakeVariant<tile::Config<32, 2, 4, 4>>("tile32-r128-c4-s4"),
      MakeVariant<tile::Config<32, 2, 4, 9>>("tile32-r128-c4-s9"),
      MakeVariant<tile::Config<32, 3, 4, 6>>("tile32-r192-c4-s6"),
      MakeVariant<tile::Config<64, 2, 4, 3>>("tile64-r128-c4-s3"),
      MakeVariant<tile::Config<64, 2, 4, 7>>("tile64-r128-c4-s7"),
      MakeVariant<tile::Config<64, 3, 4, 5>>("tile64-r192-c4-s5"),
      MakeVariant<tile::Config<64, 2, 2, 7>>("tile64-r128-c2-s7"),
      MakeVariant<tile::Config<128, 2, 4, 4>>("tile128-r128-c4-s4"),
      MakeVariant<tile::Config<128, 2, 2, 4>>("tile128-r128-c2-s4"),
      MakeVariant<tile::Config<128, 3, 4, 3>>("tile128-r192-c4-s3"),
  };
  return variants;
}

using EncodeFunction = decltype(&cuTensorMapEncodeTiled);
EncodeFunction encode = nullptr;

// Boxes of `box_rows` rows and 64 elements of a row-major [rows, k], 128-byte swizzled; zeros
// beyond its borders.
absl::Status Encode(CUtensorMap& map, const void* data, int64_t rows, int64_t k, int64_t stride,
                    int box_rows, CUtensorMapL2promotion promotion) {
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(k), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(stride * 2)};
  const cuuint32_t box[2] = {tile::kBlockK, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data), sizes, strides,
             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, promotion,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return absl::OkStatus();
  return Internal("no tensor map for {} rows of {}, stride {}: error {}", rows, k, stride,
                  static_cast<int>(result));
}

cudaLaunchConfig_t LaunchOf(const Variant& v, int64_t clusters,
                            cudaLaunchAttribute (&attributes)[2]) {
  const auto cluster = static_cast<unsigned>(v.config.cluster);
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {cluster, 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t launch{};
  launch.gridDim = dim3(static_cast<unsigned>(clusters) * cluster);
  launch.blockDim = dim3(static_cast<unsigned>(v.threads));
  launch.dynamicSmemBytes = static_cast<size_t>(v.config.shared_bytes);
  launch.attrs = attributes;
  launch.numAttrs = 2;
  return launch;
}

}  // namespace

std::span<const StreamConfig> TileConfigs() {
  static const auto configs = [] {
    std::array<StreamConfig, std::tuple_size_v<std::remove_cvref_t<decltype(Variants())>>> result;
    std::transform(Variants().begin(), Variants().end(), result.begin(),
                   [](const Variant& v) { return v.config; });
    return result;
  }();
  return configs;
}

absl::Status InitTileLinear(int32_t& max_clusters_of_4) {
  constexpr unsigned kTensorMapVersion = 12000;
  cudaDriverEntryPointQueryResult found{};
  void* function = nullptr;
  PENSTOCK_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                 kTensorMapVersion, cudaEnableDefault, &found));
  if (function == nullptr) return Internal("the driver has no cuTensorMapEncodeTiled");
  encode = reinterpret_cast<EncodeFunction>(function);
  max_clusters_of_4 = 0;
  for (const Variant& v : Variants()) {
    for (const KernelFunction kernel : v.kernels) {
      if (kernel == nullptr) continue;
      const void* const code = reinterpret_cast<const void*>(kernel);
      PENSTOCK_CUDA(cudaFuncSetAttribute(code, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         v.config.shared_bytes));
      PENSTOCK_CUDA(cudaFuncSetAttribute(code, cudaFuncAttributePreferredSharedMemoryCarveout,
                                         cudaSharedmemCarveoutMaxShared));
    }
    constexpr int kMoreThanHalf = 128 << 10;
    if (v.config.cluster == 4 && v.config.shared_bytes > kMoreThanHalf && max_clusters_of_4 == 0) {
      cudaLaunchAttribute attributes[2] = {};
      cudaLaunchConfig_t launch = LaunchOf(v, 1, attributes);
      launch.numAttrs = 1;
      PENSTOCK_CUDA(cudaOccupancyMaxActiveClusters(&max_clusters_of_4, v.kernels[0], &launch));
    }
  }
  return absl::OkStatus();
}

absl::Status RunTileLinear(int index, const LinearCall& call, const StreamTuning& tuning,
                           int64_t clusters, cudaStream_t stream) {
  if (encode == nullptr) return FailedPrecondition("the wgmma kernels are not set up");
  const Variant& v = Variants().at(static_cast<size_t>(index));
  const LinearShape& s = call.shape;
  tile::Params params;
  RETURN_IF_ERROR(
      Encode(params.weight, call.weight, s.n, s.k, s.k, 64, CU_TENSOR_MAP_L2_PROMOTION_L2_256B));
  RETURN_IF_ERROR(Encode(params.x, call.x, call.num_tokens, s.k, call.x_stride, v.config.max_tokens,
                         CU_TENSOR_MAP_L2_PROMOTION_L2_128B));
  params.bias = call.bias;
  params.out = call.out;
  params.out_stride = call.out_stride;
  params.num_tokens = call.num_tokens;
  params.n = static_cast<int32_t>(s.output == LinearOutput::kSiluUp ? s.n / 2 : s.n);
  params.k = static_cast<int32_t>(s.k);
  params.l2_prefetch_bytes = tuning.l2_prefetch_bytes;
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t launch = LaunchOf(v, clusters, attributes);
  launch.stream = stream;
  return CudaStatus(cudaLaunchKernelEx(&launch, v.kernels[static_cast<size_t>(s.output)], params),
                    "tile linear");
}

}  // namespace penstock::kernels::cuda
