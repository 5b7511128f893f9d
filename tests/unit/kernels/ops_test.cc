// The ops that work token by token, and those that need weights.
#include <cmath>
#include <cstring>

#include "gmock/gmock.h"
#include "kernels/reference/reference_ops.h"
#include "tests/unit/kernels/paged_batch.h"
#include "tests/unit/kernels/test_backends.h"

namespace penstock::kernels {
namespace {

using reference::Matrix;

class OpsTest : public testing::TestWithParam<TestBackend> {
 protected:
  Matrix ToMatrix(const std::vector<float>& values, int64_t rows) {
    return {rows, static_cast<int64_t>(values.size()) / rows, {values.begin(), values.end()}};
  }

  std::unique_ptr<Weight> LoadWeight(Backend* backend, const std::vector<float>& values,
                                     int64_t rows, WeightUse use) {
    const int64_t cols = static_cast<int64_t>(values.size()) / rows;
    const WeightSegment segment = {.format = WeightFormat::kF32,
                                   .data = reinterpret_cast<const std::byte*>(values.data()),
                                   .rows = rows,
                                   .cols = cols,
                                   .row_bytes = cols * 4};
    auto weight = backend->LoadWeight({&segment, 1}, use);
    EXPECT_TRUE(weight.ok()) << weight.status();
    return std::move(weight).value();
  }

  std::mt19937 random_{7};
};

TEST_P(OpsTest, AddRmsNormMatchesReferenceAndAnyBatch) {
  const auto backend = GetParam().Make();
  for (const int hidden : {1, 15, 16, 17, 64, 100, 576, 2049}) {
    for (const int tokens : {1, 3, 257}) {
      for (const int segments : {1, 3}) {
        const size_t size = static_cast<size_t>(tokens) * hidden;
        const auto x = RandomFloats(size * segments, &random_);
        const auto residual = RandomFloats(size, &random_);
        const auto weight = RandomFloats(hidden, &random_);
        auto sum = residual;
        std::vector<float> out(size, NAN);
        AddRmsNormParams p = {.x = x.data(),
                              .num_k_segments = segments,
                              .residual = sum.data(),
                              .weight = weight.data(),
                              .out = out.data(),
                              .num_tokens = tokens,
                              .hidden = hidden};
        ASSERT_TRUE(backend->AddRmsNorm(p).ok());

        std::vector<float> added(size);
        for (size_t i = 0; i < size; ++i) {
          added[i] = x[i];
          for (int s = 1; s < segments; ++s) added[i] += x[s * size + i];
        }
        Matrix expected_residual = ToMatrix(residual, tokens);
        const Matrix expected =
            reference::AddRmsNorm(ToMatrix(added, tokens), weight, 1e-5, &expected_residual);
        for (size_t i = 0; i < size; ++i) {
          // The order of a sum over segments is fixed to the bit.
          ASSERT_EQ(sum[i], residual[i] + added[i]);
          ASSERT_NEAR(out[i], expected.values[i], 2e-6 * (1 + std::abs(expected.values[i])));
        }

        // The last token alone: the same bits.
        const size_t last = size - hidden;
        std::vector<float> alone_x, alone_out(hidden);
        for (int s = 0; s < segments; ++s) {
          const float* row = &x[s * size + last];
          alone_x.insert(alone_x.end(), row, row + hidden);
        }
        std::vector<float> alone(residual.begin() + last, residual.end());
        p.x = alone_x.data();
        p.residual = alone.data();
        p.out = alone_out.data();
        p.num_tokens = 1;
        ASSERT_TRUE(backend->AddRmsNorm(p).ok());
        EXPECT_EQ(std::memcmp(alone_out.data(), &out[last], hidden * sizeof(float)), 0);
      }
    }
  }
}

TEST_P(OpsTest, AddRmsNormWithoutInputOrOutput) {
  const auto backend = GetParam().Make();
  std::vector<float> residual = {3, 4}, x = {1, 2}, weight = {1, 2}, out(2);
  AddRmsNormParams p = {.residual = residual.data(),
                        .weight = weight.data(),
                        .out = out.data(),
                        .num_tokens = 1,
                        .hidden = 2};
  ASSERT_TRUE(backend->AddRmsNorm(p).ok());
  EXPECT_THAT(residual, testing::ElementsAre(3, 4));
  EXPECT_NEAR(out[0], 3 / std::sqrt(12.5), 1e-5);
  EXPECT_NEAR(out[1], 8 / std::sqrt(12.5), 1e-5);
  p.x = x.data();
  p.out = nullptr;
  ASSERT_TRUE(backend->AddRmsNorm(p).ok());
  EXPECT_THAT(residual, testing::ElementsAre(4, 6));
}

TEST_P(OpsTest, GatedActivationMatchesReferenceAndAnyBatch) {
  const auto backend = GetParam().Make();
  for (const int width : {1, 16, 33, 1536}) {
    for (const int tokens : {1, 2, 65}) {
      auto x = RandomFloats(static_cast<size_t>(tokens) * 2 * width, &random_, 4);
      x[0] = 200;
      if (tokens > 1) x[2 * width] = -200;
      std::vector<float> out(static_cast<size_t>(tokens) * width, NAN);
      ASSERT_TRUE(backend
                      ->GatedActivation(
                          {.x = x.data(), .out = out.data(), .num_tokens = tokens, .width = width})
                      .ok());
      const Matrix expected = reference::GatedActivation(ToMatrix(x, tokens));
      for (size_t i = 0; i < out.size(); ++i) {
        ASSERT_NEAR(out[i], expected.values[i], 1e-6 * std::abs(expected.values[i]) + 1e-30);
      }
      std::vector<float> alone(width);
      ASSERT_TRUE(backend
                      ->GatedActivation({.x = &x[x.size() - 2 * width],
                                         .out = alone.data(),
                                         .num_tokens = 1,
                                         .width = width})
                      .ok());
      EXPECT_EQ(std::memcmp(alone.data(), &out[out.size() - width], width * sizeof(float)), 0);
    }
  }
}

TEST_P(OpsTest, GatherRowsTakesRowsInAnyOrder) {
  const auto backend = GetParam().Make();
  const std::vector<float> x = {1, 2, 3, 4, 5, 6};
  const std::vector<int32_t> index = {2, 0, 2};
  std::vector<float> out(6);
  ASSERT_TRUE(
      backend
          ->GatherRows(
              {.x = x.data(), .index = index.data(), .out = out.data(), .count = 3, .hidden = 2})
          .ok());
  EXPECT_THAT(out, testing::ElementsAre(5, 6, 1, 2, 5, 6));
}

TEST_P(OpsTest, EmbedReadsTheTokenTable) {
  const auto backend = GetParam().Make();
  constexpr int kVocab = 32, kHidden = 64;
  const auto values = RandomFloats(kVocab * kHidden, &random_);
  const auto weight = LoadWeight(backend.get(), values, kVocab, WeightUse::kEmbedding);
  std::vector<int32_t> ids(2 * 8, -1);
  const TokenTable table = {ids.data(), 8};
  ASSERT_TRUE(backend->BindTokens(table, 1, std::vector<int32_t>{5, 31, 0}).ok());
  ASSERT_TRUE(backend->BindTokens(table, 0, std::vector<int32_t>{7}).ok());
  const PageMap pages(2, 1, &random_);
  const PagedBatch batch(pages, {{1, 1, 2}, {0, 0, 1}});
  std::vector<float> out(3 * kHidden);
  ASSERT_TRUE(backend
                  ->Embed({.table = weight.get(),
                           .tokens = table,
                           .batch = &batch.rows(),
                           .out = out.data(),
                           .scale = 0.5f})
                  .ok());
  const int expected[] = {31, 0, 7};
  for (int i = 0; i < 3 * kHidden; ++i) {
    ASSERT_EQ(out[i], values[expected[i / kHidden] * kHidden + i % kHidden] * 0.5f);
  }
}

TEST_P(OpsTest, LinearAndLogitsMatchReference) {
  const auto backend = GetParam().Make();
  constexpr int kRows = 48, kCols = 96, kTokens = 5;
  const auto values = RandomFloats(kRows * kCols, &random_);
  const auto weight = LoadWeight(backend.get(), values, kRows, WeightUse::kEmbeddingAndLinear);
  const auto x = RandomFloats(kTokens * kCols, &random_);
  const auto bias = RandomFloats(kRows, &random_);
  std::vector<float> product(kTokens * kRows), logits(kTokens * kRows);
  ASSERT_TRUE(backend
                  ->Linear({.x = x.data(),
                            .x_stride = kCols,
                            .weight = weight.get(),
                            .bias = bias.data(),
                            .out = product.data(),
                            .num_tokens = kTokens})
                  .ok());
  ASSERT_TRUE(backend
                  ->Logits({.x = x.data(),
                            .head = weight.get(),
                            .out = logits.data(),
                            .count = kTokens,
                            .vocab_size = kRows})
                  .ok());
  for (int t = 0; t < kTokens; ++t) {
    for (int n = 0; n < kRows; ++n) {
      double expected = 0;
      for (int k = 0; k < kCols; ++k) {
        expected += static_cast<double>(x[t * kCols + k]) * values[n * kCols + k];
      }
      ASSERT_NEAR(logits[t * kRows + n], expected, 2e-5);
      ASSERT_NEAR(product[t * kRows + n], expected + bias[n], 2e-5);
    }
  }
}

TEST_P(OpsTest, CopyPagesCopiesThemInAllLayers) {
  const auto backend = GetParam().Make();
  constexpr int kPages = 20, kLayers = 3;
  for (const int elements : {1, 35, 4096}) {
    const size_t size = static_cast<size_t>(kPages) * elements;
    std::vector<std::vector<float>> buffers, expected;
    for (int i = 0; i < 2 * kLayers; ++i) buffers.push_back(RandomFloats(size, &random_));
    expected = buffers;
    std::vector<KvLayer> layers;
    for (int i = 0; i < kLayers; ++i) {
      layers.push_back({buffers[2 * i].data(), buffers[2 * i + 1].data(), DType::kF32, 16});
    }
    const std::vector<PageCopy> copies = {{7, 0}, {7, 19}, {3, 4}};
    for (auto& pages : expected) {
      for (const PageCopy& copy : copies) {
        std::copy_n(pages.begin() + copy.from * elements, elements,
                    pages.begin() + copy.to * elements);
      }
    }
    ASSERT_TRUE(backend->CopyPages({layers, elements, copies}).ok());
    EXPECT_EQ(buffers, expected);
    // Pages of half the size: their dtype says how many bytes they are.
    for (KvLayer& layer : layers) layer.dtype = DType::kF16;
    const PageCopy half = {1, 2};
    for (auto& pages : expected) {
      auto* bytes = reinterpret_cast<std::byte*>(pages.data());
      std::copy_n(bytes + 2 * elements, 2 * elements, bytes + 4 * elements);
    }
    ASSERT_TRUE(backend->CopyPages({layers, elements, {&half, 1}}).ok());
    for (size_t i = 0; i < buffers.size(); ++i) {  // as bytes: some are no numbers any more
      EXPECT_EQ(std::memcmp(buffers[i].data(), expected[i].data(), size * sizeof(float)), 0);
    }
  }
}

TEST_P(OpsTest, AllocateGivesZeroes) {
  const auto backend = GetParam().Make();
  const auto buffer = backend->Allocate(1000).value();
  EXPECT_EQ(buffer->bytes, 1000u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data) % 64, 0u);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(buffer->as<uint8_t>()[i], 0);
}

INSTANTIATE_TEST_SUITE_P(Cpu, OpsTest, testing::ValuesIn(TestBackends()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace penstock::kernels
