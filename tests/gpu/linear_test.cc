// Linear layers on the GPU against plain sums in double, over odd shapes; every stream variant and
// cuBLASLt. Outputs are poisoned first, and what lies around them must stay.
#include "kernels/cuda/linear.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <random>
#include <vector>

#include "kernels/cuda/linear_lt.h"
#include "kernels/cuda/linear_stream.h"

namespace penstock::kernels::cuda {
namespace {

constexpr unsigned kSeed = 20261121;
constexpr float kPoison = -12352.0f;  // also in bf16
constexpr int kPad = 8;               // elements after each row of out and x

template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& host) : size_(host.size()) {
    EXPECT_EQ(cudaMalloc(&data_, std::max<size_t>(1, size_) * sizeof(T)), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(data_, host.data(), size_ * sizeof(T), cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  T* get() const { return data_; }
  std::vector<T> Host() const {
    std::vector<T> host(size_);
    EXPECT_EQ(cudaMemcpy(host.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return host;
  }

 private:
  T* data_ = nullptr;
  size_t size_;
};

std::vector<__nv_bfloat16> Random(size_t count, std::mt19937& random, float scale) {
  std::uniform_real_distribution<float> uniform(-scale, scale);
  std::vector<__nv_bfloat16> values(count);
  for (auto& v : values) v = __float2bfloat16(uniform(random));
  return values;
}

struct Case {
  LinearShape shape;
  int32_t tokens = 1;
  bool bias = false;
};
using RunFunction = std::function<absl::Status(const LinearCall&)>;

// Runs and compares a sample of the outputs (all of them where there are few).
void Check(const Case& c, const RunFunction& run, std::vector<float>* result = nullptr) {
  SCOPED_TRACE(testing::Message() << "M " << c.tokens << " N " << c.shape.n << " K " << c.shape.k
                                  << " output " << static_cast<int>(c.shape.output) << " segments "
                                  << c.shape.k_segments << " bias " << c.bias);
  std::mt19937 random(kSeed);
  const int64_t n = c.shape.n, k = c.shape.k, m = c.tokens;
  const bool gated = c.shape.output == LinearOutput::kSiluUp;
  const bool wide = c.shape.output == LinearOutput::kFloat;
  const int64_t features = gated ? n / 2 : n, x_stride = k + kPad, out_stride = features + kPad;
  const auto weight = Random(static_cast<size_t>(n * k), random, 1.0f);
  auto x = Random(static_cast<size_t>(m * x_stride), random, 1.0f);
  for (int64_t i = 0; i < m; ++i) {  // between the rows: what must not be read
    for (int64_t j = k; j < x_stride; ++j)
      x[static_cast<size_t>(i * x_stride + j)] = __float2bfloat16(NAN);
  }
  std::vector<float> bias(static_cast<size_t>(n));
  for (auto& b : bias) b = std::uniform_real_distribution<float>(-9, 9)(random);

  DeviceArray<__nv_bfloat16> d_weight(weight), d_x(x);
  DeviceArray<float> d_bias(bias);
  const size_t segment_size = static_cast<size_t>(m * out_stride);
  const size_t out_count = segment_size * static_cast<size_t>(c.shape.k_segments);
  DeviceArray<float> out_wide(std::vector<float>(wide ? out_count : 1, kPoison));
  DeviceArray<__nv_bfloat16> out_narrow(
      std::vector<__nv_bfloat16>(wide ? 1 : out_count, __float2bfloat16(kPoison)));
  const LinearCall call = {.shape = c.shape,
                           .num_tokens = c.tokens,
                           .x = d_x.get(),
                           .x_stride = x_stride,
                           .weight = d_weight.get(),
                           .bias = c.bias ? d_bias.get() : nullptr,
                           .out = wide ? static_cast<void*>(out_wide.get()) : out_narrow.get(),
                           .out_stride = out_stride};
  const absl::Status status = run(call);
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  std::vector<float> out(out_count);
  if (wide) {
    out = out_wide.Host();
  } else {
    const auto narrow = out_narrow.Host();
    for (size_t i = 0; i < out_count; ++i) out[i] = __bfloat162float(narrow[i]);
  }

  const auto dot = [&](int64_t row, int64_t token) {
    double sum = 0;
    for (int64_t i = 0; i < k; ++i) {
      sum += double{__bfloat162float(weight[static_cast<size_t>(row * k + i)])} *
             __bfloat162float(x[static_cast<size_t>(token * x_stride + i)]);
    }
    return sum;
  };
  const int64_t checks = std::min<int64_t>(m * features, std::max<int64_t>(500, 4'000'000 / k));
  const int64_t step = std::max<int64_t>(1, m * features / checks);
  double error = 0, norm = 0;
  for (int64_t i = 0; i < m * features; i += step) {
    const int64_t token = i / features, feature = i % features;
    double want = dot(feature, token);
    if (gated) {
      want = want / (1 + std::exp(-want)) * dot(feature + features, token);
    } else if (c.bias) {
      want += bias[static_cast<size_t>(feature)];
    }
    double got = 0;
    for (size_t at = static_cast<size_t>(token * out_stride + feature); at < out_count;
         at += segment_size) {
      got += out[at];
    }
    ASSERT_TRUE(std::isfinite(got)) << "token " << token << " feature " << feature;
    ASSERT_NEAR(got, want, (wide ? 1e-4 : 0.02) * (std::sqrt(double(k)) + std::abs(want)) + 1e-4)
        << "token " << token << " feature " << feature;
    error += (got - want) * (got - want);
    norm += want * want;
  }
  EXPECT_LT(std::sqrt(error / norm), wide ? 1e-4 : 5e-3);
  for (int64_t token = 0; token < m * c.shape.k_segments; ++token) {  // of all segments
    for (int64_t feature = 0; feature < out_stride; ++feature) {
      const float got = out[static_cast<size_t>(token * out_stride + feature)];
      if (feature < features) {
        ASSERT_NE(got, kPoison) << token << " " << feature;
      } else {
        ASSERT_EQ(got, kPoison);
      }
    }
  }
  if (result != nullptr) *result = out;
}

int32_t NumMultiprocessors() {
  int value = 0;
  cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 0);
  return value;
}

class StreamTest : public testing::TestWithParam<size_t> {
 protected:
  void SetUp() override { ASSERT_TRUE(InitStreamLinear().ok()); }
  const StreamConfig& config() const { return StreamConfigs()[GetParam()]; }
  RunFunction run(int32_t multiprocessors = NumMultiprocessors(), int32_t prefetch = 65536) const {
    return [this, multiprocessors, prefetch](const LinearCall& call) {
      EXPECT_TRUE(StreamSupports(config(), call));
      return RunStreamLinear(
          static_cast<int>(GetParam()), call,
          {.num_multiprocessors = multiprocessors, .l2_prefetch_bytes = prefetch}, nullptr);
    };
  }
};

TEST_P(StreamTest, OddShapes) {
  std::printf("seed %u, %s\n", kSeed, std::string(config().name).c_str());
  const int32_t most = config().max_tokens;
  for (const int32_t tokens : {1, most / 2 + 1, most - 1, most}) {
    for (const auto& [n, k] :
         {std::pair{1, 8}, {17, 64}, {200, 72}, {576, 576}, {960, 1536}, {333, 4096}}) {
      for (const LinearOutput output : {LinearOutput::kBf16, LinearOutput::kFloat}) {
        ASSERT_NO_FATAL_FAILURE(Check({{n, k, output}, tokens, (n + tokens) % 2 == 0}, run()));
      }
    }
  }
}

TEST_P(StreamTest, GatedActivation) {
  if (!config().fuses_silu_up) GTEST_SKIP() << "does not fuse";
  for (const int32_t tokens : {1, config().max_tokens}) {
    for (const auto& [n, k] : {std::pair{2, 8}, {50, 128}, {3072, 576}, {1000, 2048}}) {
      ASSERT_NO_FATAL_FAILURE(Check({{n, k, LinearOutput::kSiluUp}, tokens}, run()));
    }
  }
}

// Many tiles a block, and so the ring across tiles, on a grid of few blocks; more L2 prefetch than
// K; none.
TEST_P(StreamTest, ManyTilesABlock) {
  for (const int32_t multiprocessors : {1, 2, 5}) {
    ASSERT_NO_FATAL_FAILURE(Check({{1500, 1024, LinearOutput::kFloat}, config().max_tokens, true},
                                  run(multiprocessors, 1 << 24)));
    ASSERT_NO_FATAL_FAILURE(Check({{700, 320, LinearOutput::kBf16}, 1}, run(multiprocessors, 0)));
  }
}

TEST_P(StreamTest, LongK) {
  ASSERT_NO_FATAL_FAILURE(Check({{300, 14336, LinearOutput::kBf16}, config().max_tokens}, run()));
  ASSERT_NO_FATAL_FAILURE(Check({{4096, 4096, LinearOutput::kFloat}, config().max_tokens}, run()));
}

TEST_P(StreamTest, ATokenDoesNotDependOnTheOthers) {
  std::vector<float> one, many;
  const LinearShape shape = {512, 4096, LinearOutput::kFloat};
  ASSERT_NO_FATAL_FAILURE(Check({shape, 1}, run(), &one));
  ASSERT_NO_FATAL_FAILURE(Check({shape, config().max_tokens}, run(), &many));
  for (size_t i = 0; i < static_cast<size_t>(shape.n); ++i) ASSERT_EQ(one[i], many[i]) << i;
}

std::string VariantName(const testing::TestParamInfo<size_t>& info) {
  std::string name(StreamConfigs()[info.param].name);
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}
INSTANTIATE_TEST_SUITE_P(Variants, StreamTest, testing::Range<size_t>(0, StreamConfigs().size()),
                         VariantName);

TEST(LtTest, AllCandidates) {
  auto lt = Lt::Create(size_t{32} << 20);
  ASSERT_TRUE(lt.ok()) << lt.status();
  for (const int32_t tokens : {1, 3, 17, 257}) {
    const LinearShape shape = {1040, 576, LinearOutput::kBf16};
    const auto algorithms = (*lt)->Candidates(shape, tokens, 8);
    ASSERT_FALSE(algorithms.empty());
    for (const LtAlgorithm& algorithm : algorithms) {
      ASSERT_NO_FATAL_FAILURE(Check({shape, tokens}, [&](const LinearCall& call) {
        return (*lt)->Run(call, &algorithm, nullptr);
      }));
    }
  }
}

TEST(LtTest, SegmentsOfKAddUp) {
  auto lt = Lt::Create(size_t{32} << 20);
  ASSERT_TRUE(lt.ok()) << lt.status();
  for (const int32_t segments : {2, 4}) {
    for (const int32_t tokens : {1, 5, 32, 128}) {
      const LinearShape shape = {576, 1536, LinearOutput::kBf16, segments};
      const auto algorithms = (*lt)->Candidates(shape, tokens, 8);
      ASSERT_FALSE(algorithms.empty());
      for (const LtAlgorithm& algorithm : algorithms) {
        ASSERT_NO_FATAL_FAILURE(Check({shape, tokens, true}, [&](const LinearCall& call) {
          absl::Status status = (*lt)->Run(call, &algorithm, nullptr);
          return status.ok() ? AddBias(call, nullptr) : status;
        }));
      }
    }
  }
}

// What a backend sees: planned, then any number of tokens, and shapes that were not planned.
TEST(LinearTest, PlansAndRuns) {
  const std::string folder = std::filesystem::temp_directory_path() / "penstock_linear_test";
  std::filesystem::remove_all(folder);
  const LinearShape shapes[] = {{768, 576, LinearOutput::kBf16},
                                {1024, 520, LinearOutput::kSiluUp},
                                {3001, 576, LinearOutput::kFloat},
                                {768, 576, LinearOutput::kBf16, 4}};
  int32_t most_fused = 0;
  for (const StreamConfig& c : StreamConfigs()) {
    if (c.fuses_silu_up) most_fused = std::max(most_fused, c.max_tokens);
  }
  std::string first;
  for (int start = 0; start < 2; ++start) {  // the second reads what the first has measured
    auto linear = Linear::Create({.cache_directory = folder});
    ASSERT_TRUE(linear.ok()) << linear.status();
    const PlannedLinear planned[] = {
        {shapes[0], 300}, {shapes[1], 300}, {shapes[2], 16}, {shapes[3], 128}};
    const int32_t exact[] = {3, 5};
    const absl::Status status = (*linear)->Plan(planned, exact);
    ASSERT_TRUE(status.ok()) << status;
    std::string choices;
    const RunFunction run = [&](const LinearCall& call) { return (*linear)->Run(call, nullptr); };
    for (LinearShape shape :
         {shapes[0], shapes[1], shapes[2], shapes[3], LinearShape{77, 136, LinearOutput::kBf16}}) {
      for (const int32_t tokens : {1, 2, 3, 7, 16, 31, 33, 100, 256, 257, 400}) {
        if (shape.output == LinearOutput::kSiluUp && !(*linear)->FusesSiluUp(shape, tokens)) {
          // Null pointers: only for what no variant takes, so that nothing is launched.
          LinearCall call = {
              .shape = shape, .num_tokens = tokens, .x_stride = shape.k, .out_stride = shape.n};
          if (tokens > most_fused) {
            EXPECT_EQ(run(call).code(), absl::StatusCode::kFailedPrecondition);
          }
          shape.output = LinearOutput::kBf16;
        }
        choices += (*linear)->Describe(shape, tokens) + "\n";
        ASSERT_NO_FATAL_FAILURE(Check({shape, tokens, shape.output != LinearOutput::kSiluUp}, run));
      }
    }
    const int32_t segments = (*linear)->BestSegments(shapes[0], 32);
    EXPECT_TRUE(segments == 1 || segments == 4) << segments;
    EXPECT_EQ((*linear)->BestSegments(shapes[2], 1), 1);
    if (start == 0) first = choices;
    EXPECT_EQ(choices, first);
  }
  std::filesystem::remove_all(folder);
}

TEST(LinearTest, UnalignedXFallsBack) {
  auto linear = Linear::Create({.measure = false});
  ASSERT_TRUE(linear.ok()) << linear.status();
  const LinearShape shape = {64, 100, LinearOutput::kBf16};  // K is no multiple of 8
  ASSERT_NO_FATAL_FAILURE(
      Check({shape, 4}, [&](const LinearCall& call) { return (*linear)->Run(call, nullptr); }));
  EXPECT_EQ((*linear)->Run({.shape = shape, .num_tokens = 0}, nullptr).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace penstock::kernels::cuda
