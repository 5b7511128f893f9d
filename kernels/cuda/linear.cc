#include "kernels/cuda/linear.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <set>
#include <vector>

#include "common/log.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/linear_cache.h"
#include "kernels/cuda/linear_lt.h"
#include "kernels/cuda/linear_measure.h"
#include "kernels/cuda/linear_stream.h"

namespace penstock::kernels::cuda {
namespace {

constexpr int kCacheRevision = 9;  // of the file's form and of the stream kernels behind the names
constexpr int kMaxLtCandidates = 32;
constexpr int32_t kUnplannedStreamTokens =
    8;                                // up to here the stream kernels win on every shape seen
constexpr double kBalanceKept = 0.7;  // of the best: variants that idle more are not worth timing
constexpr float kActivationUs =
    2;  // of a gated activation by itself, at sizes where both ways exist
// To read one more segment's product: at least, and by its size.
constexpr float kSegmentUs = 0.2f;
constexpr float kSegmentBytesPerUs = 3e6f;
constexpr int32_t kLadder[] = {1,   2,   4,   8,   16,   24,   32,   48,   64,   96,   128, 192,
                               256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192};

int64_t OutFeatures(const LinearShape& shape) {
  return shape.output == LinearOutput::kSiluUp ? shape.n / 2 : shape.n;
}
int64_t OutSize(const LinearShape& shape) { return shape.output == LinearOutput::kFloat ? 4 : 2; }

// A file name for this kind of GPU and library.
std::string CacheName(const cudaDeviceProp& device) {
  std::string name;
  for (const char c : std::string(device.name)) {
    name += std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '-';
  }
  return fmt::format("{}-{}.txt", name, cublasLtGetVersion());
}

class LinearImpl : public Linear {
 public:
  absl::Status Init(const LinearOptions& options) {
    options_ = options;
    int device = 0;
    cudaDeviceProp properties{};
    PENSTOCK_CUDA(cudaGetDevice(&device));
    PENSTOCK_CUDA(cudaGetDeviceProperties(&properties, device));
    tuning_.num_multiprocessors = properties.multiProcessorCount;
    hopper_ = properties.major == 9;
    if (hopper_) RETURN_IF_ERROR(InitStreamLinear());
    ASSIGN_OR_RETURN(lt_, Lt::Create(options.workspace_bytes));
    if (options_.use_cache && options_.measure) {
      const std::string folder =
          options.cache_directory.empty() ? DefaultCacheDirectory() : options.cache_directory;
      if (!folder.empty()) cache_path_ = fmt::format("{}/{}", folder, CacheName(properties));
      cache_header_ = fmt::format("penstock linear {} | {} | {} multiprocessors | cuBLASLt {} | {}",
                                  kCacheRevision, properties.name, properties.multiProcessorCount,
                                  cublasLtGetVersion(), options.workspace_bytes);
      if (!cache_path_.empty()) choices_ = LoadChoices(cache_path_, cache_header_);
      std::erase_if(choices_, [](const auto& item) {
        return !item.second.stream.empty() && FindVariant(item.second.stream) < 0;
      });
    }
    return absl::OkStatus();
  }

  absl::Status Plan(std::span<const PlannedLinear> linears,
                    std::span<const int32_t> exact_tokens) override {
    if (!options_.measure) return absl::OkStatus();
    std::vector<PlannedLinear> all(linears.begin(), linears.end());
    for (const PlannedLinear& linear : linears) {  // FusesSiluUp compares
      if (linear.shape.output != LinearOutput::kSiluUp) continue;
      all.push_back({{linear.shape.n, linear.shape.k, LinearOutput::kBf16}, linear.max_tokens});
    }
    LinearChoices wanted;
    size_t weight_bytes = 0, x_bytes = 0, out_bytes = 0;
    for (const PlannedLinear& linear : all) {
      const LinearShape& s = linear.shape;
      std::set<int32_t> sizes(std::begin(kLadder), std::end(kLadder));
      sizes.insert(exact_tokens.begin(), exact_tokens.end());
      for (int32_t m = kLadder[std::size(kLadder) - 1]; m < linear.max_tokens;)
        sizes.insert(m *= 2);
      for (auto it = sizes.begin(); it != sizes.end(); ++it) {
        const int32_t m = *it;
        const bool first_above = it != sizes.begin() && *std::prev(it) >= linear.max_tokens;
        if (m <= 0 || first_above || choices_.contains({s, m})) continue;
        if (s.output == LinearOutput::kSiluUp && Variants(s, m).empty()) continue;
        wanted.emplace(std::make_pair(s, m), LinearChoice{});
        weight_bytes = std::max(weight_bytes, static_cast<size_t>(s.n * s.k * 2));
        x_bytes = std::max(x_bytes, static_cast<size_t>(m * s.k * 2));
        out_bytes = std::max(out_bytes,
                             static_cast<size_t>(m * OutFeatures(s) * OutSize(s) * s.k_segments));
      }
    }
    if (wanted.empty()) return absl::OkStatus();
    absl::StatusOr<std::unique_ptr<LinearMeasurer>> measurer =
        LinearMeasurer::Create(weight_bytes, x_bytes, out_bytes);
    if (!measurer.ok()) {
      spdlog::warn("msg=\"linears run as the heuristics say\" reason=\"{}\"",
                   Message(measurer.status()));
      return absl::OkStatus();
    }
    spdlog::info("msg=\"timing linear layers\" count={}", wanted.size());
    for (auto& [key, choice] : wanted) {
      ASSIGN_OR_RETURN(std::optional<LinearChoice> best,
                       Measure(**measurer, key.first, key.second));
      if (best.has_value()) choices_[key] = *best;
    }
    if (!cache_path_.empty()) {
      const absl::Status saved = SaveChoices(cache_path_, cache_header_, choices_);
      if (!saved.ok())
        spdlog::warn("msg=\"linear choices are not kept\" reason=\"{}\"", Message(saved));
    }
    return absl::OkStatus();
  }

  absl::Status Run(const LinearCall& call, cudaStream_t stream) override {
    RETURN_IF_ERROR(Check(call));
    const LinearChoice* const choice = Choice(call.shape, call.num_tokens);
    const int variant = choice != nullptr ? FindVariant(choice->stream)
                                          : DefaultVariant(call.shape, call.num_tokens);
    if (variant >= 0 && StreamSupports(StreamConfigs()[static_cast<size_t>(variant)], call)) {
      return RunStreamLinear(variant, call, tuning_, stream);
    }
    if (call.shape.output == LinearOutput::kSiluUp) {
      return FailedPrecondition("gated activation of M {} N {} K {} is not fused: see FusesSiluUp",
                                call.num_tokens, call.shape.n, call.shape.k);
    }
    const bool lt = choice != nullptr && choice->stream.empty();
    RETURN_IF_ERROR(lt_->Run(call, lt ? &choice->algorithm : nullptr, stream));
    return call.bias != nullptr ? AddBias(call, stream) : absl::OkStatus();
  }

  bool FusesSiluUp(const LinearShape& shape, int32_t num_tokens) const override {
    if (shape.k % 8 != 0 || shape.n % 2 != 0) return false;
    const LinearShape fused = {shape.n, shape.k, LinearOutput::kSiluUp};
    const LinearChoice* const choice = Choice(fused, num_tokens);
    const LinearChoice* const apart = Choice({shape.n, shape.k, LinearOutput::kBf16}, num_tokens);
    if (choice != nullptr && apart != nullptr && choice->us > apart->us + kActivationUs)
      return false;
    return (choice != nullptr ? FindVariant(choice->stream) : DefaultVariant(fused, num_tokens)) >=
           0;
  }

  int32_t BestSegments(const LinearShape& shape, int32_t num_tokens) const override {
    int32_t best = 1;
    float best_us = std::numeric_limits<float>::max();
    for (LinearShape cut = shape; const int32_t segments : {1, 2, 4}) {
      cut.k_segments = segments;
      const LinearChoice* const choice = Choice(cut, num_tokens);
      if (choice == nullptr) continue;
      const auto bytes = static_cast<float>(num_tokens * OutFeatures(cut) * OutSize(cut));
      const float us =
          choice->us + static_cast<float>(segments - 1) * (kSegmentUs + bytes / kSegmentBytesPerUs);
      if (us >= best_us) continue;
      best = segments;
      best_us = us;
    }
    return best;
  }

  std::string Describe(const LinearShape& shape, int32_t num_tokens) const override {
    const LinearChoice* const choice = Choice(shape, num_tokens);
    if (choice == nullptr) {
      const int variant = DefaultVariant(shape, num_tokens);
      if (variant < 0) return "cublaslt, by heuristics";
      return fmt::format("stream {}, by heuristics",
                         std::string(StreamConfigs()[static_cast<size_t>(variant)].name));
    }
    if (choice->stream.empty()) return fmt::format("cublaslt, {:.1f} us", choice->us);
    return fmt::format("stream {}, {:.1f} us", choice->stream, choice->us);
  }

 private:
  static absl::Status Check(const LinearCall& call) {
    const LinearShape& s = call.shape;
    if (call.num_tokens < 1 || s.n < 1 || s.k < 1 || call.x_stride < s.k ||
        call.out_stride < OutFeatures(s)) {
      return InvalidArgument("linear of M {} N {} K {} with strides {} and {}", call.num_tokens,
                             s.n, s.k, call.x_stride, call.out_stride);
    }
    if (s.k_segments < 1 || s.k % s.k_segments != 0 ||
        (s.k_segments > 1 && s.output == LinearOutput::kSiluUp)) {
      return InvalidArgument("linear of K {} can't be cut in {} segments", s.k, s.k_segments);
    }
    if (s.output == LinearOutput::kSiluUp && (s.n % 2 != 0 || call.bias != nullptr)) {
      return InvalidArgument("a gated linear has an even N and no bias");
    }
    return absl::OkStatus();
  }

  // The planned choice of this size or the next.
  const LinearChoice* Choice(const LinearShape& shape, int32_t num_tokens) const {
    const auto it = choices_.lower_bound({shape, num_tokens});
    return it != choices_.end() && it->first.first == shape ? &it->second : nullptr;
  }

  static int FindVariant(const std::string& name) {
    const auto configs = StreamConfigs();
    for (size_t i = 0; i < configs.size(); ++i) {
      if (std::string_view(configs[i].name) == name) return static_cast<int>(i);
    }
    return -1;
  }

  // Variants worth a try: for the fewest tokens that will do or the next size (what one gains in
  // columns, another may in rows), and even work.
  std::vector<int> Variants(const LinearShape& shape, int32_t num_tokens) const {
    std::vector<int> result;
    if (!hopper_ || shape.k % 8 != 0 || shape.k_segments > 1) return result;
    const auto configs = StreamConfigs();
    int32_t tokens = 0;
    double best = 0;
    const auto fits = [&](const StreamConfig& c) {
      return c.max_tokens >= num_tokens &&
             (shape.output != LinearOutput::kSiluUp || c.fuses_silu_up);
    };
    for (const StreamConfig& c : configs) {
      if (fits(c) && (tokens == 0 || c.max_tokens < tokens)) tokens = c.max_tokens;
    }
    const auto balance = [&](const StreamConfig& c) {
      return StreamBalance(c, shape.n, tuning_.num_multiprocessors);
    };
    for (const StreamConfig& c : configs) {
      if (fits(c) && c.max_tokens <= 2 * tokens) best = std::max(best, balance(c));
    }
    for (size_t i = 0; i < configs.size(); ++i) {
      const StreamConfig& c = configs[i];
      if (fits(c) && c.max_tokens <= 2 * tokens && balance(c) >= kBalanceKept * best) {
        result.push_back(static_cast<int>(i));
      }
    }
    return result;
  }

  int DefaultVariant(const LinearShape& shape, int32_t num_tokens) const {
    if (num_tokens > kUnplannedStreamTokens) return -1;
    const std::vector<int> variants = Variants(shape, num_tokens);
    return variants.empty() ? -1 : variants.front();
  }

  // The fastest; none if nothing runs. A candidate that is refused is passed over.
  absl::StatusOr<std::optional<LinearChoice>> Measure(LinearMeasurer& measurer,
                                                      const LinearShape& shape,
                                                      int32_t num_tokens) {
    std::optional<LinearChoice> best;
    const auto consider = [&](LinearChoice choice,
                              const absl::StatusOr<float>& us) -> absl::Status {
      if (!us.ok()) {
        PENSTOCK_CUDA(cudaDeviceSynchronize());  // what the device reports is final
        return absl::OkStatus();
      }
      choice.us = *us;
      if (!best.has_value() || choice.us < best->us) best = choice;
      return absl::OkStatus();
    };
    for (const int variant : Variants(shape, num_tokens)) {
      const LinearChoice choice = {
          .stream = std::string(StreamConfigs()[static_cast<size_t>(variant)].name)};
      RETURN_IF_ERROR(consider(
          choice,
          measurer.Time(shape, num_tokens, [&](const LinearCall& call, cudaStream_t stream) {
            return RunStreamLinear(variant, call, tuning_, stream);
          })));
    }
    for (const LtAlgorithm& algorithm : lt_->Candidates(shape, num_tokens, kMaxLtCandidates)) {
      RETURN_IF_ERROR(consider(
          {.algorithm = algorithm},
          measurer.Time(shape, num_tokens, [&](const LinearCall& call, cudaStream_t stream) {
            return lt_->Run(call, &algorithm, stream);
          })));
    }
    return best;
  }

  LinearOptions options_;
  StreamTuning tuning_;
  bool hopper_ = false;  // what the own kernels are made for
  std::unique_ptr<Lt> lt_;
  LinearChoices choices_;
  std::string cache_path_, cache_header_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Linear>> Linear::Create(const LinearOptions& options) {
  auto linear = std::make_unique<LinearImpl>();
  RETURN_IF_ERROR(linear->Init(options));
  return linear;
}

}  // namespace penstock::kernels::cuda
