// Linear layers at Llama-3.1-8B's shapes, one JSON line a result: microseconds of every stream
// variant and of the best cuBLASLt algorithm, then a whole step's linears (32 layers and the output
// head) in one CUDA graph: with cuBLASLt alone, and with the best of both for each layer, where
// cuBLASLt's gate_up is charged the activation that the variants have in them.
//
// Usage: cuda_linear_bench [--m=1,2,4,...] [--chain-only] [--shapes-only] [--layers=32]
//
// All in CUDA graphs whose launches are programmatically dependent, on as many weights as a step
// has, so none is in L2. share = bytes of the weight / time / 4.72 TB/s, the read bandwidth of an
// H200.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/linear_lt.h"
#include "kernels/cuda/linear_stream.h"

namespace penstock::kernels::cuda {
namespace {

constexpr double kBytesPerUs = 4.72e6;
constexpr int kReplays = 5;
constexpr size_t kColdBytes = size_t{256} << 20;
constexpr int32_t kMaxTokens = 256;

struct Layer {
  const char* name;
  LinearShape shape;
  size_t offset;  // of its weight in a layer's
};
constexpr int64_t kHidden = 4096, kQkv = 6144, kMlp = 14336, kVocab = 128256;
constexpr size_t kLayerElements = size_t{kHidden} * (kQkv + kHidden + 3 * kMlp);
const Layer kLayers[] = {
    {"qkv", {kQkv, kHidden, LinearOutput::kBf16}, 0},
    {"o", {kHidden, kHidden, LinearOutput::kBf16}, size_t{kHidden} * kQkv},
    {"gate_up", {2 * kMlp, kHidden, LinearOutput::kSiluUp}, size_t{kHidden} * (kQkv + kHidden)},
    {"down", {kHidden, kMlp, LinearOutput::kBf16}, size_t{kHidden} * (kQkv + kHidden + 2 * kMlp)},
    {"lm_head", {kVocab, kHidden, LinearOutput::kFloat}, 0},
};
constexpr int kNumLayers = 5, kGateUp = 2, kHead = 4;
constexpr float kActivationUs = 2;

// How a linear runs: a stream variant, or cuBLASLt.
struct Way {
  int variant = -1;
  LtAlgorithm algorithm{};
  float us = std::numeric_limits<float>::max();
};

struct Options {
  std::vector<int> tokens = {1, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256};
  bool shapes = true, chain = true;
  int layers = 32;
};

class Bench {
 public:
  absl::Status Init(const Options& options) {
    options_ = options;
    PENSTOCK_CUDA(
        cudaDeviceGetAttribute(&tuning_.num_multiprocessors, cudaDevAttrMultiProcessorCount, 0));
    PENSTOCK_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    PENSTOCK_CUDA(cudaEventCreate(&begin_));
    PENSTOCK_CUDA(cudaEventCreate(&end_));
    RETURN_IF_ERROR(InitStreamLinear());
    ASSIGN_OR_RETURN(lt_, Lt::Create(size_t{32} << 20));
    const size_t layers = static_cast<size_t>(std::max(options.layers, 4));
    weight_elements_ = kLayerElements * layers + size_t{kVocab} * kHidden;
    RETURN_IF_ERROR(Fill(&weights_, weight_elements_, 1e-3f));
    RETURN_IF_ERROR(Fill(&x_, size_t{kMaxTokens} * kMlp, 1.0f));
    for (auto** out : {&qkv_, &o_, &mlp_, &down_})
      RETURN_IF_ERROR(Fill(out, size_t{kMaxTokens} * 2 * kMlp, 1.0f));
    PENSTOCK_CUDA(cudaMalloc(&logits_, size_t{kMaxTokens} * kVocab * sizeof(float)));
    return absl::OkStatus();
  }

  absl::Status Run() {
    for (const int m : options_.tokens) {
      std::vector<Way> stream(kNumLayers), lt(kNumLayers);
      for (int i = 0; i < kNumLayers; ++i) RETURN_IF_ERROR(TimeLayer(i, m, stream[i], lt[i]));
      if (!options_.chain) continue;
      ASSIGN_OR_RETURN(const float lt_us, TimeChain(lt, m));
      std::printf("{\"chain\": \"cublaslt\", \"m\": %d, \"ms\": %.4f}\n", m, lt_us / 1000);
      std::vector<Way> best = lt;
      for (int i = 0; i < kNumLayers; ++i) {
        if (stream[i].us < lt[i].us + (i == kGateUp ? kActivationUs : 0)) best[i] = stream[i];
      }
      const auto own = [](const Way& way) { return way.variant >= 0; };
      if (std::any_of(best.begin(), best.end(), own)) RETURN_IF_ERROR(TuneChain(best, lt, m));
      std::fflush(stdout);
    }
    return absl::OkStatus();
  }

 private:
  static absl::Status Fill(__nv_bfloat16** pointer, size_t count, float scale) {
    PENSTOCK_CUDA(cudaMalloc(pointer, count * sizeof(__nv_bfloat16)));
    std::mt19937 random(1);
    std::uniform_real_distribution<float> uniform(-scale, scale);
    std::vector<__nv_bfloat16> host(std::min<size_t>(count, size_t{4} << 20));
    for (auto& v : host) v = __float2bfloat16(uniform(random));
    for (size_t done = 0; done < count; done += host.size()) {
      const size_t bytes = std::min(host.size(), count - done) * sizeof(__nv_bfloat16);
      PENSTOCK_CUDA(done == 0
                        ? cudaMemcpy(*pointer, host.data(), bytes, cudaMemcpyHostToDevice)
                        : cudaMemcpy(*pointer + done, *pointer, bytes, cudaMemcpyDeviceToDevice));
    }
    return absl::OkStatus();
  }

  // Fastest of a few replays of a graph of what `record` launches, in us.
  absl::StatusOr<float> TimeGraph(const std::function<absl::Status()>& record) {
    PENSTOCK_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    const absl::Status recorded = record();
    cudaGraph_t graph = nullptr;
    PENSTOCK_CUDA(cudaStreamEndCapture(stream_, &graph));
    if (!recorded.ok()) {
      cudaGraphDestroy(graph);
      return recorded;
    }
    cudaGraphExec_t exec = nullptr;
    PENSTOCK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
    float best = std::numeric_limits<float>::max();
    for (int i = 0; i <= kReplays; ++i) {
      float ms = 0;
      PENSTOCK_CUDA(cudaEventRecord(begin_, stream_));
      PENSTOCK_CUDA(cudaGraphLaunch(exec, stream_));
      PENSTOCK_CUDA(cudaEventRecord(end_, stream_));
      PENSTOCK_CUDA(cudaEventSynchronize(end_));
      PENSTOCK_CUDA(cudaEventElapsedTime(&ms, begin_, end_));
      if (i > 0) best = std::min(best, ms * 1000);
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    return best;
  }

  absl::Status Launch(const Way& way, LinearCall call) {
    if (way.variant >= 0) return RunStreamLinear(way.variant, call, tuning_, stream_);
    if (call.shape.output == LinearOutput::kSiluUp) {
      call.shape.output = LinearOutput::kBf16;
      call.out_stride = call.shape.n;
    }
    return lt_->Run(call, &way.algorithm, stream_);
  }

  // Layer i of decoder layer `layer`, reading what the one before it wrote.
  LinearCall Call(int i, int layer, int m, bool fused) const {
    const LinearShape& s = kLayers[i].shape;
    LinearCall call = {.shape = s, .num_tokens = m, .x_stride = s.k, .out_stride = s.n};
    call.weight = weights_ + static_cast<size_t>(layer) * kLayerElements + kLayers[i].offset;
    const __nv_bfloat16* const xs[] = {layer == 0 ? x_ : down_, qkv_, o_, mlp_, down_};
    void* const outs[] = {qkv_, o_, mlp_, down_, logits_};
    call.x = xs[i];
    call.out = outs[i];
    if (i == 1) call.x_stride = kQkv;
    if (i == 2 && fused) call.out_stride = kMlp;
    if (i == 3 && !fused) call.x_stride = 2 * kMlp;
    return call;
  }

  // Independent weights, but out and x the same, so each launch waits for the one before it.
  absl::StatusOr<float> TimeWay(int i, int m, const Way& way) {
    const size_t elements = static_cast<size_t>(kLayers[i].shape.n * kLayers[i].shape.k);
    const size_t copies = std::min(weight_elements_ / elements,
                                   std::max<size_t>(1, 64 * kHidden * kHidden / elements));
    const size_t launches = std::max<size_t>(3, 2 * kColdBytes / (2 * elements));
    ASSIGN_OR_RETURN(const float us, TimeGraph([&]() -> absl::Status {
                       for (size_t j = 0; j < launches; ++j) {
                         LinearCall call = Call(i, 0, m, true);
                         call.x = x_;
                         call.x_stride = call.shape.k;
                         call.weight = weights_ + j % copies * elements;
                         RETURN_IF_ERROR(Launch(way, call));
                       }
                       return absl::OkStatus();
                     }));
    return us / static_cast<float>(launches);
  }

  static std::string WayName(const Way& way) {
    if (way.variant < 0) return "cublaslt";
    return std::string(StreamConfigs()[static_cast<size_t>(way.variant)].name);
  }

  absl::Status TimeLayer(int i, int m, Way& stream, Way& lt) {
    const LinearShape& s = kLayers[i].shape;
    const double floor_us = static_cast<double>(s.n * s.k * 2) / kBytesPerUs;
    std::string line;
    for (const int variant : Variants(i, m)) {
      Way way = {.variant = variant};
      ASSIGN_OR_RETURN(way.us, TimeWay(i, m, way));
      line += fmt::format("{}\"{}\": {:.2f}", line.empty() ? "" : ", ", WayName(way), way.us);
      if (way.us < stream.us) stream = way;
    }
    const LinearShape plain = {s.n, s.k,
                               s.output == LinearOutput::kFloat ? s.output : LinearOutput::kBf16};
    for (const LtAlgorithm& algorithm : lt_->Candidates(plain, m, 8)) {
      Way way = {.algorithm = algorithm};
      const auto us = TimeWay(i, m, way);
      if (!us.ok()) continue;
      way.us = *us;
      if (way.us < lt.us) lt = way;
    }
    if (!options_.shapes) return absl::OkStatus();
    std::printf(
        "{\"layer\": \"%s\", \"m\": %d, \"stream_us\": %.2f, \"share\": %.3f, \"lt_us\": %.2f, "
        "\"lt_share\": %.3f, \"variants\": {%s}}\n",
        kLayers[i].name, m, stream.variant < 0 ? -1.0 : stream.us,
        stream.variant < 0 ? 0.0 : floor_us / stream.us, lt.us, floor_us / lt.us, line.c_str());
    std::fflush(stdout);
    return absl::OkStatus();
  }

  // Those for the fewest tokens that will do or twice as many, and not those that leave a third
  // idle.
  std::vector<int> Variants(int i, int m) const {
    const LinearShape& s = kLayers[i].shape;
    std::vector<int> result;
    int32_t tokens = 0;
    for (const StreamConfig& c : StreamConfigs()) {
      if (c.max_tokens >= m && (tokens == 0 || c.max_tokens < tokens)) tokens = c.max_tokens;
    }
    for (size_t v = 0; v < StreamConfigs().size(); ++v) {
      const StreamConfig& c = StreamConfigs()[v];
      if (c.max_tokens > 2 * tokens || c.max_tokens < m ||
          (s.output == LinearOutput::kSiluUp && !c.fuses_silu_up))
        continue;
      if (StreamBalance(c, s.n, tuning_.num_multiprocessors) < 0.67) continue;
      result.push_back(static_cast<int>(v));
    }
    return result;
  }

  absl::StatusOr<float> TimeChain(const std::vector<Way>& ways, int m) {
    const bool fused = ways[kGateUp].variant >= 0;
    return TimeGraph([&]() -> absl::Status {
      for (int layer = 0; layer < options_.layers; ++layer) {
        for (int i = 0; i < kHead; ++i) RETURN_IF_ERROR(Launch(ways[i], Call(i, layer, m, fused)));
      }
      return Launch(ways[kHead], Call(kHead, options_.layers, m, fused));
    });
  }

  absl::StatusOr<float> ChainCost(const std::vector<Way>& ways, int m) {
    ASSIGN_OR_RETURN(const float us, TimeChain(ways, m));
    const bool fused = ways[kGateUp].variant >= 0;
    return us + (fused ? 0 : kActivationUs * static_cast<float>(options_.layers));
  }

  // From the layers' best ways, one layer at a time: what is best in the chain; then the L2
  // prefetch.
  absl::Status TuneChain(std::vector<Way> ways, const std::vector<Way>& lt, int m) {
    ASSIGN_OR_RETURN(float best, ChainCost(ways, m));
    const float first = best;
    for (int i = 0; i < kNumLayers; ++i) {
      std::vector<Way> candidates = {lt[i]};
      for (const int variant : Variants(i, m)) candidates.push_back({.variant = variant});
      for (const Way& candidate : candidates) {
        std::vector<Way> other = ways;
        other[i] = candidate;
        ASSIGN_OR_RETURN(const float us, ChainCost(other, m));
        if (us < best) best = us, ways = other;
      }
    }
    std::string names, prefetch;
    for (int i = 0; i < kNumLayers; ++i) {
      names +=
          fmt::format("{}\"{}\": \"{}\"", i == 0 ? "" : ", ", kLayers[i].name, WayName(ways[i]));
    }
    for (const int32_t kib : {0, 16, 32, 64}) {
      tuning_.l2_prefetch_bytes = kib << 10;
      ASSIGN_OR_RETURN(const float us, ChainCost(ways, m));
      prefetch += fmt::format("{}\"{}\": {:.4f}", prefetch.empty() ? "" : ", ", kib, us / 1000);
    }
    tuning_.l2_prefetch_bytes = StreamTuning().l2_prefetch_bytes;
    const double bytes =
        2.0 * (static_cast<double>(options_.layers) * kLayerElements + double{kVocab} * kHidden);
    std::printf(
        "{\"chain\": \"best\", \"m\": %d, \"ms\": %.4f, \"untuned_ms\": %.4f, \"share\": %.3f, "
        "\"ways\": {%s}, "
        "\"ms_by_prefetch_kib\": {%s}}\n",
        m, best / 1000, first / 1000, bytes / kBytesPerUs / best, names.c_str(), prefetch.c_str());
    return absl::OkStatus();
  }

  Options options_;
  StreamTuning tuning_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  std::unique_ptr<Lt> lt_;
  size_t weight_elements_ = 0;
  __nv_bfloat16 *weights_ = nullptr, *x_ = nullptr, *qkv_ = nullptr, *o_ = nullptr, *mlp_ = nullptr,
                *down_ = nullptr;
  float* logits_ = nullptr;
};

Options ParseOptions(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg == "--chain-only") options.shapes = false;
    if (arg == "--shapes-only") options.chain = false;
    if (arg.starts_with("--layers=")) options.layers = std::atoi(arg.c_str() + 9);
    if (arg.starts_with("--m=")) {
      options.tokens.clear();
      for (const char* p = arg.c_str() + 3; p != nullptr && *p != 0; p = std::strchr(p + 1, ',')) {
        options.tokens.push_back(std::clamp(std::atoi(p + 1), 1, kMaxTokens));
      }
    }
  }
  return options;
}

}  // namespace
}  // namespace penstock::kernels::cuda

int main(int argc, char** argv) {
  namespace cuda = penstock::kernels::cuda;
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    std::printf("skipped: no GPU here\n");
    return 0;
  }
  cuda::Bench bench;
  absl::Status status = bench.Init(cuda::ParseOptions(argc, argv));
  if (status.ok()) status = bench.Run();
  if (!status.ok()) std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  return status.ok() ? 0 : 1;
}
