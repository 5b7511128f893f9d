// Products against the dequantised weights in double precision, over odd shapes, formats, kernels
// and threads; and equality of bits where linear.h promises it. The seed is fixed and printed with
// each failure's trace.
#include "kernels/cpu/linear.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/dequantize.h"
#include "kernels/cpu/linear_kernels.h"

namespace penstock::kernels::cpu {
namespace {

constexpr WeightFormat kFormats[] = {WeightFormat::kF32,  WeightFormat::kF16,  WeightFormat::kBF16,
                                     WeightFormat::kQ4_0, WeightFormat::kQ4_1, WeightFormat::kQ5_0,
                                     WeightFormat::kQ5_1, WeightFormat::kQ8_0, WeightFormat::kQ4_K,
                                     WeightFormat::kQ5_K, WeightFormat::kQ6_K};

using Random = std::mt19937;

std::vector<float> RandomFloats(Random& random, size_t count, float spread = 1) {
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> values(count);
  for (float& v : values) v = normal(random);
  return values;
}

// A matrix of a format: any bytes are valid codes, only the float16 scales must be sensible
// numbers.
struct Matrix {
  WeightFormat format;
  int64_t rows, cols, row_bytes;
  std::vector<std::byte> data;
  std::vector<float> values;

  WeightSegment Segment() const { return {format, data.data(), rows, cols, row_bytes}; }
};

void PutHalf(Random& random, std::byte* p, float low, float high) {
  const uint16_t bits = FloatToHalf(std::uniform_real_distribution<float>(low, high)(random));
  std::memcpy(p, &bits, 2);
}

void FillBlock(Random& random, WeightFormat format, std::byte* block) {
  const FormatInfo& info = GetFormatInfo(format);
  for (int i = 0; i < info.block_bytes; ++i) block[i] = static_cast<std::byte>(random());
  if (info.code_bits == 0) {
    const float value = RandomFloats(random, 1)[0];
    const uint16_t half =
        format == WeightFormat::kF16 ? FloatToHalf(value) : FloatToBFloat16(value);
    std::memcpy(block, &half, 2);
    if (format == WeightFormat::kF32) std::memcpy(block, &value, 4);
  } else if (format == WeightFormat::kQ6_K) {
    PutHalf(random, block + 208, -0.001f, 0.001f);
  } else if (!info.half_scales) {
    PutHalf(random, block, 0.0005f, 0.001f);
    PutHalf(random, block + 2, 0.005f, 0.01f);
  } else {
    PutHalf(random, block, -0.05f, 0.05f);
    if (info.has_minimum) PutHalf(random, block + 2, -0.5f, 0.1f);
  }
}

Matrix RandomMatrix(Random& random, WeightFormat format, int64_t rows, int64_t cols) {
  const FormatInfo& info = GetFormatInfo(format);
  Matrix m{format, rows, cols, cols / info.block_size * info.block_bytes, {}, {}};
  m.data.resize(static_cast<size_t>(rows * m.row_bytes));
  for (size_t i = 0; i < m.data.size(); i += info.block_bytes)
    FillBlock(random, format, m.data.data() + i);
  m.values.resize(static_cast<size_t>(rows * cols));
  Dequantize(format, m.data.data(), rows * cols, m.values.data());
  return m;
}

std::unique_ptr<CpuWeight> LoadOrDie(LinearContext& context, std::vector<WeightSegment> segments,
                                     WeightUse use = WeightUse::kLinear) {
  auto weight = context.Load(segments, use);
  EXPECT_TRUE(weight.ok()) << weight.status();
  return std::move(weight).value();
}

std::vector<float> Product(const CpuWeight& weight, const std::vector<float>& x, int64_t x_stride,
                           int32_t tokens, const float* bias = nullptr, int32_t segments = 1) {
  std::vector<float> out(static_cast<size_t>(segments * tokens * weight.rows), std::nanf(""));
  weight.Multiply(x.data(), x_stride, bias, out.data(), tokens, segments);
  return out;
}

double Norm(const float* values, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(values[i]) * values[i];
  return std::sqrt(sum);
}

// Largest error of a result relative to |x| |w| + |bias|, which bounds the result.
double RelativeError(const Matrix& m, const std::vector<float>& x, int64_t x_stride,
                     const float* bias, const std::vector<float>& out, int64_t out_stride,
                     int32_t tokens) {
  std::vector<double> row_norms;
  for (int64_t n = 0; n < m.rows; ++n) row_norms.push_back(Norm(&m.values[n * m.cols], m.cols));
  double worst = 0;
  for (int32_t t = 0; t < tokens; ++t) {
    const float* token = &x[t * x_stride];
    const double norm = Norm(token, m.cols);
    for (int64_t n = 0; n < m.rows; ++n) {
      const float* row = &m.values[n * m.cols];
      double sum = bias == nullptr ? 0 : bias[n];
      const double bound = norm * row_norms[n] + std::abs(sum) + 1e-9;
      for (int64_t k = 0; k < m.cols; ++k) sum += static_cast<double>(token[k]) * row[k];
      const double error = std::abs(out[t * out_stride + n] - sum);
      if (!std::isfinite(error)) return INFINITY;
      worst = std::max(worst, error / bound);
    }
  }
  return worst;
}

// Of the fast mode, relative to |x| |w|. Quantised: an activation is off by up to 1/254 of its
// block's largest, which is about 2.2 standard deviations; K independent errors of uniform spread
// leave 0.005 / sqrt(K) typically; with int16, 258 times less, and what float32 sums lose.
// bfloat16: each factor is off by up to 1/512.
double Tolerance(Mode mode, WeightFormat format, WeightUse use, int64_t cols) {
  if (mode == Mode::kFloat32) return 2e-6;
  const double root = std::sqrt(static_cast<double>(cols));
  if (!IsQuantized(format)) return 0.02 / root + 1e-6;
  return use == WeightUse::kCoarseLinear ? 0.05 / root : 0.0002 / root + 1e-6;
}

std::vector<uint32_t> Bits(const std::vector<float>& values) {
  std::vector<uint32_t> bits;
  bits.reserve(values.size());
  for (const float v : values) bits.push_back(std::bit_cast<uint32_t>(v));
  return bits;
}

struct Shape {
  int64_t rows, cols;
  int32_t tokens;
};
constexpr Shape kShapes[] = {{1, 256, 1},    {15, 512, 2},   {16, 256, 3},  {17, 1536, 4},
                             {40, 768, 5},   {33, 256, 7},   {100, 512, 8}, {64, 256, 9},
                             {129, 256, 17}, {48, 1536, 33}, {70, 256, 64}, {16, 256, 257}};
constexpr Shape kSmallBlockShapes[] = {
    {5, 32, 1}, {31, 96, 6}, {576, 576, 1}, {130, 576, 13}, {16, 32, 257}};

struct Param {
  Mode mode;
  WeightUse use;  // of weights that are only multiplied with
  size_t kernels;
};

class LinearTest : public testing::TestWithParam<Param> {
 protected:
  std::unique_ptr<LinearContext> Make(int threads) {
    auto context =
        MakeLinearContext(GetParam().mode, threads, AvailableKernels()[GetParam().kernels]);
    EXPECT_TRUE(context->ReserveScratch(300, 1600).ok());
    return context;
  }
  std::unique_ptr<CpuWeight> Load(LinearContext& context, std::vector<WeightSegment> segments) {
    return LoadOrDie(context, std::move(segments), GetParam().use);
  }
};

TEST_P(LinearTest, MatchesDoublePrecision) {
  Random random(1);
  auto one = Make(1), two = Make(2);
  for (const WeightFormat format : kFormats) {
    std::vector<Shape> shapes(std::begin(kShapes), std::end(kShapes));
    if (GetFormatInfo(format).block_size <= 32) {
      shapes.insert(shapes.end(), std::begin(kSmallBlockShapes), std::end(kSmallBlockShapes));
    }
    if (!IsQuantized(format)) shapes.insert(shapes.end(), {{19, 1, 3}, {20, 37, 7}, {35, 250, 2}});
    double worst = 0;
    for (const Shape& shape : shapes) {
      SCOPED_TRACE(testing::Message() << GetFormatInfo(format).name << " N " << shape.rows << " K "
                                      << shape.cols << " T " << shape.tokens);
      const Matrix m = RandomMatrix(random, format, shape.rows, shape.cols);
      const int64_t stride = shape.cols + 3;
      const auto x = RandomFloats(random, static_cast<size_t>(shape.tokens * stride));
      const auto bias = RandomFloats(random, static_cast<size_t>(shape.rows));
      const auto weight = Load(*two, {m.Segment()});
      ASSERT_EQ(weight->rows, shape.rows);
      ASSERT_EQ(weight->cols, shape.cols);
      const auto out = Product(*weight, x, stride, shape.tokens, bias.data());
      const double error = RelativeError(m, x, stride, bias.data(), out, shape.rows, shape.tokens);
      EXPECT_LE(error, Tolerance(GetParam().mode, format, GetParam().use, shape.cols));
      worst = std::max(worst, error * std::sqrt(static_cast<double>(shape.cols)));
      const auto alone = Load(*one, {m.Segment()});
      EXPECT_EQ(Product(*alone, x, stride, shape.tokens, bias.data()), out)
          << "threads change the bits";
    }
    RecordProperty(GetFormatInfo(format).name, std::to_string(worst));
  }
}

TEST_P(LinearTest, TokenKeepsItsBitsInAnyBatch) {
  Random random(2);
  auto context = Make(2);
  for (const WeightFormat format : kFormats) {
    const Matrix m = RandomMatrix(random, format, 90, 768);
    const auto weight = Load(*context, {m.Segment()});
    const auto x = RandomFloats(random, 257 * 768);
    const auto whole = Product(*weight, x, 768, 257);
    for (const int32_t tokens : {1, 2, 3, 5, 6, 7, 8, 9, 12, 15, 16, 31, 100}) {
      const int32_t first = 257 - tokens;  // other neighbours, other places in tiles
      const std::vector<float> rows(x.begin() + first * 768, x.end());
      const auto part = Product(*weight, rows, 768, tokens);
      ASSERT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + first * 90))
          << GetFormatInfo(format).name << " in a batch of " << tokens;
    }
  }
}

// A rank's share of a row-parallel weight: columns [begin, end), cut at block borders.
WeightSegment Columns(const Matrix& m, int64_t begin, int64_t end) {
  const FormatInfo& info = GetFormatInfo(m.format);
  WeightSegment s = m.Segment();
  s.data += begin / info.block_size * info.block_bytes;
  s.cols = end - begin;
  return s;
}

TEST_P(LinearTest, ColumnSegmentsAreTheSameBitsOnEachRank) {
  Random random(3);
  auto context = Make(2);
  for (const WeightFormat format : kFormats) {
    constexpr int32_t kTokens = 11, kSegments = 3;
    constexpr int64_t kRows = 50, kCols = 1536, kShare = kCols / kSegments;
    const Matrix m = RandomMatrix(random, format, kRows, kCols);
    const auto x = RandomFloats(random, kTokens * kCols);
    const auto bias = RandomFloats(random, kRows);
    const auto whole = Load(*context, {m.Segment()});
    const auto out = Product(*whole, x, kCols, kTokens, bias.data(), kSegments);
    for (int s = 0; s < kSegments; ++s) {
      const auto share = Load(*context, {Columns(m, s * kShare, (s + 1) * kShare)});
      const std::vector<float> mine(x.begin() + s * kShare, x.end());
      const auto part = Product(*share, mine, kCols, kTokens, s == 0 ? bias.data() : nullptr);
      ASSERT_TRUE(std::equal(part.begin(), part.end(), out.begin() + s * kTokens * kRows))
          << GetFormatInfo(format).name << " segment " << s;
    }
  }
}

TEST_P(LinearTest, RowSplitsAreTheSameBits) {
  Random random(4);
  auto context = Make(2);
  const Matrix m = RandomMatrix(random, WeightFormat::kQ4_1, 96, 576);
  const auto whole = Load(*context, {m.Segment()});
  const auto x = RandomFloats(random, 10 * 576);
  const auto out = Product(*whole, x, 576, 10);
  for (int64_t begin = 0; begin < 96; begin += 32) {
    WeightSegment s = m.Segment();
    s.data += begin * s.row_bytes;
    s.rows = 32;
    const auto share = Product(*Load(*context, {s}), x, 576, 10);
    for (int t = 0; t < 10; ++t) {
      for (int64_t n = 0; n < 32; ++n) ASSERT_EQ(share[t * 32 + n], out[t * 96 + begin + n]);
    }
  }
}

TEST_P(LinearTest, SegmentsOfManyFormatsStackUp) {
  Random random(5);
  auto context = Make(2);
  std::vector<Matrix> parts;
  std::vector<WeightSegment> segments;
  for (const WeightFormat format : kFormats)
    parts.push_back(RandomMatrix(random, format, 16 + parts.size(), 256));
  int64_t rows = 0;
  for (const Matrix& m : parts) segments.push_back(m.Segment()), rows += m.rows;
  const auto weight = Load(*context, segments);
  ASSERT_EQ(weight->rows, rows);
  for (const int32_t tokens : {1, 10, 40}) {
    const auto x = RandomFloats(random, static_cast<size_t>(tokens) * 256);
    const auto bias = RandomFloats(random, static_cast<size_t>(rows));
    const auto out = Product(*weight, x, 256, tokens, bias.data());
    int64_t first = 0;
    for (const Matrix& m : parts) {
      const std::vector<float> mine(out.begin() + first, out.end());
      EXPECT_LE(RelativeError(m, x, 256, bias.data() + first, mine, rows, tokens),
                Tolerance(GetParam().mode, m.format, GetParam().use, 256))
          << GetFormatInfo(m.format).name << " T " << tokens;
      first += m.rows;
    }
  }
}

TEST_P(LinearTest, EmbeddingRowsAreExact) {
  Random random(6);
  auto context = Make(2);
  for (const WeightFormat format : kFormats) {
    for (const WeightUse use : {WeightUse::kEmbedding, WeightUse::kEmbeddingAndLinear}) {
      const Matrix a = RandomMatrix(random, format, 21, 512),
                   b = RandomMatrix(random, WeightFormat::kQ8_0, 30, 512);
      const auto weight = LoadOrDie(*context, {a.Segment(), b.Segment()}, use);
      std::vector<float> row(512);
      for (int64_t r = 0; r < weight->rows; ++r) {
        weight->DequantizeRow(r, row.data());
        const Matrix& m = r < a.rows ? a : b;
        const float* want = m.values.data() + (r < a.rows ? r : r - a.rows) * 512;
        const std::vector<float> expected(want, want + 512);
        ASSERT_EQ(Bits(row), Bits(expected)) << GetFormatInfo(format).name << " row " << r;
      }
    }
  }
}

TEST_P(LinearTest, RowViewsShareTheWeight) {
  Random random(7);
  auto context = Make(2);
  const Matrix a = RandomMatrix(random, WeightFormat::kQ8_0, 64, 256),
               b = RandomMatrix(random, WeightFormat::kQ6_K, 37, 256);
  auto weight = LoadOrDie(*context, {a.Segment(), b.Segment()}, WeightUse::kEmbeddingAndLinear);
  const auto x = RandomFloats(random, 3 * 256);
  const auto out = Product(*weight, x, 256, 3);
  struct View {
    int64_t begin, count;
  };
  for (const View& view : {View{0, 101}, View{16, 20}, View{48, 40}, View{64, 37}, View{96, 5}}) {
    const auto rows = weight->Rows(view.begin, view.count);
    ASSERT_TRUE(rows.ok()) << rows.status();
    const auto part = Product(**rows, x, 256, 3);
    for (int t = 0; t < 3; ++t) {
      for (int64_t n = 0; n < view.count; ++n)
        ASSERT_EQ(part[t * view.count + n], out[t * 101 + view.begin + n]);
    }
  }
  for (const View& view : {View{8, 16}, View{65, 2}, View{-16, 16}, View{96, 6}, View{0, 0}}) {
    EXPECT_EQ(weight->Rows(view.begin, view.count).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST_P(LinearTest, NotANumberStaysWithItsToken) {
  Random random(8);
  auto context = Make(2);
  for (const WeightFormat format : kFormats) {
    const Matrix m = RandomMatrix(random, format, 40, 256);
    const auto weight = Load(*context, {m.Segment()});
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      auto x = RandomFloats(random, 9 * 256);
      const auto good = Product(*weight, x, 256, 9);
      x[4 * 256 + 77] = bad;
      const auto out = Product(*weight, x, 256, 9);
      for (int t = 0; t < 9; ++t) {
        for (int n = 0; n < 40; ++n) {
          if (t == 4) {
            ASSERT_FALSE(std::isfinite(out[t * 40 + n])) << GetFormatInfo(format).name;
          } else {
            ASSERT_EQ(out[t * 40 + n], good[t * 40 + n]);
          }
        }
      }
    }
    const std::vector<float> zeros(256, 0.0f);
    EXPECT_THAT(Product(*weight, zeros, 256, 1), testing::Each(0.0f));
  }
}

TEST_P(LinearTest, BadSegmentsAreRefused) {
  auto context = Make(1);
  const std::vector<std::byte> data(4096);
  const WeightSegment good{WeightFormat::kQ4_1, data.data(), 4, 64, 40};
  EXPECT_TRUE(context->Load({&good, 1}, WeightUse::kLinear).ok());
  const auto refuse = [&](std::vector<WeightSegment> segments) {
    EXPECT_EQ(context->Load(segments, WeightUse::kLinear).status().code(),
              absl::StatusCode::kInvalidArgument);
  };
  refuse({});
  WeightSegment bad = good;
  bad.cols = 48;
  refuse({bad});
  bad = good;
  bad.row_bytes = 39;
  refuse({bad});
  bad = good;
  bad.rows = 0;
  refuse({bad});
  bad = good;
  bad.data = nullptr;
  refuse({bad});
  bad = good;
  bad.cols = 32;
  refuse({good, bad});
}

std::vector<Param> AllParams() {
  std::vector<Param> params;
  for (const Mode mode : {Mode::kFast, Mode::kFloat32}) {
    for (size_t i = 0; i < AvailableKernels().size(); ++i) {
      params.push_back({mode, WeightUse::kLinear, i});
      if (mode == Mode::kFast) params.push_back({mode, WeightUse::kCoarseLinear, i});
    }
  }
  return params;
}

INSTANTIATE_TEST_SUITE_P(Kernels, LinearTest, testing::ValuesIn(AllParams()), [](const auto& info) {
  return std::string(info.param.mode == Mode::kFloat32            ? "float32_"
                     : info.param.use == WeightUse::kCoarseLinear ? "fast_coarse_"
                                                                  : "fast_") +
         AvailableKernels()[info.param.kernels].name;
});

// Every activation and code at its largest, with one sign: where a sum could overflow.
TEST(LinearKernelsTest, LargestSumsFit) {
  for (const LinearKernels& kernels : AvailableKernels()) {
    for (const WeightFormat format : kFormats) {
      if (!IsQuantized(format)) continue;
      for (const int code : {0x00, 0x7f, 0x80, 0xff}) {
        Random random(10);
        Matrix m = RandomMatrix(random, format, 16, 256);
        const FormatInfo& info = GetFormatInfo(format);
        if (info.half_scales) {  // those lie before the codes
          for (size_t i = 0; i < m.data.size(); i += info.block_bytes) {
            const int begin = info.has_minimum ? 4 : 2;
            std::memset(&m.data[i + begin], code, info.block_bytes - begin);
          }
          Dequantize(format, m.data.data(), m.rows * m.cols, m.values.data());
        }
        for (const float value : {3.0f, -3.0f}) {
          const std::vector<float> x(256, value);
          for (const WeightUse use : {WeightUse::kLinear, WeightUse::kCoarseLinear}) {
            auto context = MakeLinearContext(Mode::kFast, 1, kernels);
            ASSERT_TRUE(context->ReserveScratch(1, 256).ok());
            const auto out = Product(*LoadOrDie(*context, {m.Segment()}, use), x, 256, 1);
            EXPECT_LE(RelativeError(m, x, 256, nullptr, out, 16, 1), 1e-6)
                << kernels.name << " " << info.name << " codes " << code;
          }
        }
      }
    }
  }
}

// The integer dot products are exact and all floating-point steps fused alike.
TEST(LinearKernelsTest, VectorKernelsAgreeToTheBit) {
  const auto kernels = AvailableKernels();
  if (kernels.size() < 3) GTEST_SKIP() << "needs AVX-512";
  Random random(9);
  for (const Mode mode : {Mode::kFast, Mode::kFloat32}) {
    for (const WeightFormat format : kFormats) {
      if (mode == Mode::kFast && !IsQuantized(format)) continue;
      const Matrix m = RandomMatrix(random, format, 50, 512);
      const auto x = RandomFloats(random, 20 * 512);
      for (const WeightUse use : {WeightUse::kLinear, WeightUse::kCoarseLinear}) {
        std::vector<std::vector<float>> results;
        for (size_t i = 1; i < 3; ++i) {
          auto context = MakeLinearContext(mode, 1, kernels[i]);
          ASSERT_TRUE(context->ReserveScratch(20, 512).ok());
          results.push_back(Product(*LoadOrDie(*context, {m.Segment()}, use), x, 512, 20));
        }
        EXPECT_EQ(results[0], results[1]) << GetFormatInfo(format).name;
      }
    }
  }
}

}  // namespace
}  // namespace penstock::kernels::cpu
