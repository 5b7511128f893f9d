// The vector loops of each instruction set: how exact they are and that they agree.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/isa.h"

namespace penstock::kernels::cpu {
namespace {

class SimdTest : public testing::TestWithParam<Isa> {
 protected:
  const Kernels& kernels_ = KernelsFor(GetParam());
};

// Distance in units of the last place of the exact value.
double UlpError(float got, double exact) {
  const float nearest = static_cast<float>(exact);
  const double ulp = std::nextafter(nearest, std::numeric_limits<float>::infinity()) - nearest;
  return std::abs(got - exact) / ulp;
}

TEST_P(SimdTest, ExpIsWithinItsDocumentedError) {
  // Every 307th float between the two ends of the normal results, of either sign.
  std::vector<float> x;
  for (const float end : {88.0f, -87.33654f}) {
    uint32_t last;
    std::memcpy(&last, &end, 4);
    for (uint32_t bits = last & 0x80000000u; bits <= last; bits += 307) {
      float value;
      std::memcpy(&value, &bits, 4);
      x.push_back(value);
      if (bits > 0xffffffffu - 307) break;
    }
  }
  std::vector<float> out(x.size());
  kernels_.exp(x.data(), out.data(), static_cast<int64_t>(x.size()));
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    worst = std::max(worst, UlpError(out[i], std::exp(static_cast<double>(x[i]))));
  }
  RecordProperty("worst_ulp", std::to_string(worst));
  EXPECT_LT(worst, 1.1);
}

TEST_P(SimdTest, ExpAtItsEnds) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> x = {0.0f, -0.0f, -infinity, -88, -1e30f, 88, 1e30f, infinity, NAN};
  std::vector<float> out(x.size());
  kernels_.exp(x.data(), out.data(), static_cast<int64_t>(x.size()));
  EXPECT_EQ(out[0], 1.0f);
  EXPECT_EQ(out[1], 1.0f);
  for (const int i : {2, 3, 4}) EXPECT_EQ(out[i], 0.0f);
  for (const int i : {6, 7}) EXPECT_EQ(out[i], out[5]);
  EXPECT_TRUE(std::isnan(out[8]));
}

// A value's bits must not depend on where in a row it stands.
TEST_P(SimdTest, ExpIsTheSameInEveryLane) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-90, 90);
  for (int i = 0; i < 100; ++i) {
    const std::vector<float> x(37, uniform(random));
    std::vector<float> out(37);
    kernels_.exp(x.data(), out.data(), 37);
    for (const float y : out) ASSERT_EQ(y, out[0]);
  }
}

TEST_P(SimdTest, VocabularyPassesMatchPlainLoops) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal(0, 3);
  for (const int n : {1, 15, 16, 17, 31, 33, 1023, 1024, 1025, 5000}) {
    std::vector<float> x(n), weights(n);
    for (float& v : x) v = std::round(normal(random) * 4) / 4;  // with equals
    const auto best = std::max_element(x.begin(), x.end());
    EXPECT_EQ(kernels_.arg_max(x.data(), n, true), best - x.begin());
    std::vector<double> block_sums((n + kSumBlock - 1) / kSumBlock);
    const double total =
        kernels_.exp_sum(x.data(), n, *best, 0.5f, 0.01f, weights.data(), block_sums.data());
    double expected = 0, above = 0;
    int64_t count = 0, between = 0;
    for (int i = 0; i < n; ++i) {
      const double weight = std::exp((x[i] - *best) * 0.5);
      EXPECT_NEAR(weights[i], weight < 0.01 ? 0 : weight, 3e-7);
      expected += weights[i];
      above += weights[i] > 0.25f ? weights[i] : 0;
      count += x[i] > 0.25f;
      between += x[i] > 0.25f && x[i] <= 3.0f;
    }
    EXPECT_NEAR(total, expected, expected * 1e-6);
    double sum;
    kernels_.count_above(weights.data(), n, 0.25f, &sum);
    EXPECT_NEAR(sum, above, above * 1e-6);
    EXPECT_EQ(kernels_.count_above(x.data(), n, 0.25f, nullptr), count);
    EXPECT_NEAR(kernels_.drop_below(weights.data(), n, 0.2500001f, block_sums.data()), above,
                above * 1e-6);
    int64_t walked = 0;
    for (int64_t i = kernels_.next_between(x.data(), 0, n, 0.25f, 3.0f); i < n;
         i = kernels_.next_between(x.data(), i + 1, n, 0.25f, 3.0f)) {
      EXPECT_GT(x[i], 0.25f);
      EXPECT_LE(x[i], 3.0f);
      ++walked;
    }
    EXPECT_EQ(walked, between);
  }
}

TEST_P(SimdTest, ArgMaxSeesEveryOddValue) {
  for (const float odd :
       {NAN, std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    for (int at = 0; at < 70; ++at) {
      std::vector<float> x(70, 1.0f);
      x[at] = odd;
      EXPECT_EQ(kernels_.arg_max(x.data(), 70, true), -1) << at;
    }
  }
}

// AVX2 and AVX-512 machines give the same text.
TEST(SimdAgreementTest, Avx2AndAvx512GiveEqualBits) {
  if (AvailableIsas().size() < 3) GTEST_SKIP() << "this machine has no AVX-512";
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> x(4099), a(x.size()), b(x.size()), weight(x.size(), 1.5f);
  for (float& v : x) v = normal(random);
  const auto n = static_cast<int64_t>(x.size());
  const Kernels& avx2 = KernelsFor(Isa::kAvx2);
  const Kernels& avx512 = KernelsFor(Isa::kAvx512);
  avx2.silu_mul(x.data(), x.data(), a.data(), n);
  avx512.silu_mul(x.data(), x.data(), b.data(), n);
  EXPECT_EQ(a, b);
  avx2.add_rms_norm(nullptr, 0, 1, x.data(), weight.data(), a.data(), n, 1e-5f);
  avx512.add_rms_norm(nullptr, 0, 1, x.data(), weight.data(), b.data(), n, 1e-5f);
  EXPECT_EQ(a, b);

  std::vector<float> keys(64 * 64), values(64 * 64), q(3 * 64), out_a(3 * 64), out_b(3 * 64);
  for (auto* v : {&keys, &values, &q}) {
    for (float& f : *v) f = normal(random);
  }
  const int32_t page = 0;
  AttentionTile tile;
  tile.num_queries = 3;
  tile.head_size = 64;
  tile.scale = 0.125f;
  tile.k = keys.data();
  tile.v = values.data();
  tile.pages = &page;
  tile.page_size = 64;
  for (int m = 0; m < 3; ++m) {
    tile.q[m] = &q[m * 64];
    tile.num_visible[m] = 50 + m;
    tile.out[m] = &out_a[m * 64];
  }
  avx2.attend(tile);
  for (int m = 0; m < 3; ++m) tile.out[m] = &out_b[m * 64];
  avx512.attend(tile);
  EXPECT_EQ(out_a, out_b);
}

INSTANTIATE_TEST_SUITE_P(Cpu, SimdTest, testing::ValuesIn(AvailableIsas()),
                         [](const auto& info) { return std::string(IsaName(info.param)); });

}  // namespace
}  // namespace penstock::kernels::cpu
