// RopeKvWrite and Attention together: what goes in is qkv of whole requests, what comes out must be
// the reference's causal attention, the same bits however the requests are cut in steps.
#include <cmath>
#include <cstring>

#include "gmock/gmock.h"
#include "kernels/reference/reference_ops.h"
#include "tests/unit/kernels/paged_batch.h"
#include "tests/unit/kernels/test_backends.h"

namespace penstock::kernels {
namespace {

using reference::Matrix;

struct Shape {
  int heads = 4;
  int kv_heads = 2;
  int head_size = 64;
  int rotary_size = 64;
  bool interleaved = false;
  int page_size = 16;
  DType dtype = DType::kF32;

  int stride() const { return (heads + 2 * kv_heads) * head_size; }
};

constexpr int kMaxPosition = 2048;

double Angle(int position, int i, int rotary_size) {
  return position * std::pow(10000.0, -2.0 * i / rotary_size);
}

std::vector<float> CosSinTable(int rotary_size) {
  const int half = rotary_size / 2;
  std::vector<float> table(static_cast<size_t>(kMaxPosition) * rotary_size);
  for (int p = 0; p < kMaxPosition; ++p) {
    for (int i = 0; i < half; ++i) {
      table[p * rotary_size + i] = static_cast<float>(std::cos(Angle(p, i, rotary_size)));
      table[p * rotary_size + half + i] = static_cast<float>(std::sin(Angle(p, i, rotary_size)));
    }
  }
  return table;
}

// The qkv rows of a request's every token.
using Request = std::vector<float>;

// Runs the requests in the given steps and returns each one's attention output, [context, H * E].
std::vector<std::vector<float>> RunSteps(const TestBackend& made, const Shape& shape,
                                         const std::vector<Request>& requests,
                                         const std::vector<std::vector<TestRow>>& steps,
                                         std::mt19937* random) {
  const auto backend = made.Make();
  const int pages_a_slot = kMaxPosition / shape.page_size + 1;
  const PageMap pages(static_cast<int>(requests.size()), pages_a_slot, random);
  const size_t pool = static_cast<size_t>(pages.size()) * shape.kv_heads * shape.page_size *
                      shape.head_size * DTypeSize(shape.dtype);
  const auto k = backend->Allocate(pool).value();
  const auto v = backend->Allocate(pool).value();
  const KvLayer kv = {k->data, v->data, shape.dtype, shape.page_size};
  const std::vector<float> cos_sin = CosSinTable(shape.rotary_size);
  const int width = shape.heads * shape.head_size;
  std::vector<std::vector<float>> results;
  for (const Request& request : requests) {
    results.emplace_back(request.size() / shape.stride() * width);
  }
  for (const auto& step : steps) {
    const PagedBatch batch(pages, step);
    std::vector<float> qkv, out(static_cast<size_t>(batch.num_tokens()) * width, NAN);
    for (int t = 0; t < batch.num_tokens(); ++t) {
      const float* row = &requests[batch.slot(t)][batch.position(t) * shape.stride()];
      qkv.insert(qkv.end(), row, row + shape.stride());
    }
    EXPECT_TRUE(backend
                    ->RopeKvWrite({.qkv = qkv.data(),
                                   .num_heads = shape.heads,
                                   .num_kv_heads = shape.kv_heads,
                                   .head_size = shape.head_size,
                                   .rotary_size = shape.rotary_size,
                                   .interleaved = shape.interleaved,
                                   .cos_sin = cos_sin.data(),
                                   .batch = &batch.rows(),
                                   .kv = kv})
                    .ok());
    EXPECT_TRUE(backend
                    ->Attention({.q = qkv.data(),
                                 .q_stride = shape.stride(),
                                 .out = out.data(),
                                 .num_heads = shape.heads,
                                 .num_kv_heads = shape.kv_heads,
                                 .head_size = shape.head_size,
                                 .scale = 1 / std::sqrt(static_cast<float>(shape.head_size)),
                                 .batch = &batch.rows(),
                                 .kv = kv})
                    .ok());
    for (int t = 0; t < batch.num_tokens(); ++t) {
      std::memcpy(&results[batch.slot(t)][batch.position(t) * width], &out[t * width],
                  width * sizeof(float));
    }
  }
  return results;
}

// Head `head` (of q, k and v alike, in this order) of every token, rotated if asked.
Matrix HeadOf(const Shape& shape, const Request& request, int head, bool rotate) {
  const int context = static_cast<int>(request.size()) / shape.stride();
  Matrix m{context, shape.head_size, {}};
  std::vector<double> angles(shape.rotary_size / 2);
  for (int p = 0; p < context; ++p) {
    const float* row = &request[p * shape.stride() + head * shape.head_size];
    std::vector<double> values(row, row + shape.head_size);
    for (size_t i = 0; i < angles.size(); ++i) {
      angles[i] = Angle(p, static_cast<int>(i), shape.rotary_size);
    }
    if (rotate) reference::Rope(values, shape.rotary_size, shape.interleaved, angles);
    m.values.insert(m.values.end(), values.begin(), values.end());
  }
  return m;
}

// Of the tokens from `first` on.
void ExpectMatchesReference(const Shape& shape, const Request& request,
                            const std::vector<float>& out, int64_t first = 0) {
  const double tolerance =
      shape.dtype == DType::kF32 ? 2e-5 : (shape.dtype == DType::kF16 ? 3e-3 : 2.5e-2);
  const int group = shape.heads / shape.kv_heads;
  for (int h = 0; h < shape.heads; ++h) {
    const int g = h / group;
    Matrix q = HeadOf(shape, request, h, true);
    q.values.erase(q.values.begin(), q.values.begin() + first * q.cols);
    q.rows -= first;
    const Matrix expected =
        reference::Attention(q, HeadOf(shape, request, shape.heads + g, true),
                             HeadOf(shape, request, shape.heads + shape.kv_heads + g, false),
                             1 / std::sqrt(shape.head_size));
    for (int64_t t = 0; t < expected.rows; ++t) {
      for (int e = 0; e < shape.head_size; ++e) {
        ASSERT_NEAR(out[((first + t) * shape.heads + h) * shape.head_size + e], expected.at(t, e),
                    tolerance)
            << "token " << first + t << " head " << h << " element " << e;
      }
    }
  }
}

std::vector<TestRow> Chunks(int slot, int context, int chunk) {
  std::vector<TestRow> rows;
  for (int first = 0; first < context; first += chunk) {
    rows.push_back({slot, first, std::min(chunk, context - first)});
  }
  return rows;
}

class AttentionTest : public testing::TestWithParam<TestBackend> {
 protected:
  Request MakeRequest(const Shape& shape, int context) {
    return RandomFloats(static_cast<size_t>(context) * shape.stride(), &random_);
  }
  std::mt19937 random_{20261121};
};

TEST_P(AttentionTest, MatchesReferenceOverShapes) {
  const std::vector<Shape> shapes = {
      {.heads = 9, .kv_heads = 3},
      {.heads = 9, .kv_heads = 3, .interleaved = true, .dtype = DType::kF16},
      {.heads = 9, .kv_heads = 1, .dtype = DType::kBF16},
      {.heads = 2, .kv_heads = 2, .head_size = 128, .rotary_size = 128},
      {.heads = 4, .kv_heads = 1, .head_size = 128, .rotary_size = 64, .dtype = DType::kF16},
      {.heads = 3, .kv_heads = 1, .head_size = 80, .rotary_size = 20, .interleaved = true},
      {.heads = 7, .kv_heads = 1, .head_size = 96, .rotary_size = 96, .page_size = 1},
      {.heads = 2, .kv_heads = 1, .page_size = 5, .dtype = DType::kF16},
      {.heads = 2, .kv_heads = 1, .page_size = 24, .dtype = DType::kBF16},
      {.heads = 2, .kv_heads = 1, .page_size = 64},
      {.heads = 40, .kv_heads = 1, .head_size = 16, .rotary_size = 16},
      {.heads = 1, .kv_heads = 1, .head_size = 256, .rotary_size = 256},
  };
  for (const Shape& shape : shapes) {
    SCOPED_TRACE(testing::Message() << "heads " << shape.heads << "/" << shape.kv_heads << " size "
                                    << shape.head_size << " page " << shape.page_size);
    const std::vector<Request> requests = {MakeRequest(shape, 1), MakeRequest(shape, 33),
                                           MakeRequest(shape, 150)};
    // A prompt's second chunk, a whole prompt and a decode in one step.
    const std::vector<std::vector<TestRow>> steps = {
        {{2, 0, 16}}, {{1, 0, 32}, {2, 16, 117}}, {{0, 0, 1}, {2, 133, 17}, {1, 32, 1}}};
    const auto results = RunSteps(GetParam(), shape, requests, steps, &random_);
    for (size_t i = 0; i < requests.size(); ++i) {
      ExpectMatchesReference(shape, requests[i], results[i]);
    }
  }
}

TEST_P(AttentionTest, MatchesReferenceAtPageAndChunkBorders) {
  const Shape shape = {.heads = 3, .kv_heads = 1, .dtype = DType::kF16};
  std::vector<Request> requests;
  std::vector<std::vector<TestRow>> steps(1);
  for (const int context : {15, 16, 17, 127, 128, 129, 255, 256, 257}) {
    steps[0].push_back({static_cast<int32_t>(requests.size()), 0, context});
    requests.push_back(MakeRequest(shape, context));
  }
  const auto results = RunSteps(GetParam(), shape, requests, steps, &random_);
  for (size_t i = 0; i < requests.size(); ++i) {
    ExpectMatchesReference(shape, requests[i], results[i]);
  }
}

TEST_P(AttentionTest, MatchesReferenceInLongContext) {
  const Shape shape = {.heads = 2, .kv_heads = 1};
  const std::vector<Request> requests = {MakeRequest(shape, 2000)};
  const auto results =
      RunSteps(GetParam(), shape, requests, {{{0, 0, 1999}}, {{0, 1999, 1}}}, &random_);
  ExpectMatchesReference(shape, requests[0], results[0], 1900);
}

// The rule that the float32 mode rests on.
TEST_P(AttentionTest, SameBitsForAnyChunkingAndBatch) {
  for (const int page_size : {16, 6, 32}) {
    for (const int heads : {1, 3, 7}) {
      const Shape shape = {.heads = heads, .kv_heads = 1, .page_size = page_size};
      const std::vector<Request> requests = {MakeRequest(shape, 300), MakeRequest(shape, 157),
                                             MakeRequest(shape, 40)};
      const auto whole = RunSteps(GetParam(), shape, requests,
                                  {{{0, 0, 300}}, {{1, 0, 157}}, {{2, 0, 40}}}, &random_);
      for (const int chunk : {1, 7, 64}) {
        // All three side by side, each starting a few steps after the last.
        std::vector<std::vector<TestRow>> steps;
        for (int slot = 0; slot < 3; ++slot) {
          size_t at = slot * 3;
          for (const TestRow& row :
               Chunks(slot, static_cast<int>(requests[slot].size()) / shape.stride(), chunk)) {
            if (at >= steps.size()) steps.resize(at + 1);
            steps[at++].push_back(row);
          }
        }
        for (auto& step : steps) std::shuffle(step.begin(), step.end(), random_);
        const auto cut = RunSteps(GetParam(), shape, requests, steps, &random_);
        for (size_t i = 0; i < requests.size(); ++i) {
          ASSERT_EQ(std::memcmp(whole[i].data(), cut[i].data(), whole[i].size() * sizeof(float)), 0)
              << "request " << i << " chunk " << chunk << " heads " << heads << " page "
              << page_size;
        }
      }
    }
  }
}

// A page may hold what an earlier request left, NaN even: it is never read past the context.
TEST_P(AttentionTest, IgnoresWhatLiesBeyondTheContext) {
  const Shape shape = {.heads = 2, .kv_heads = 1};
  const auto backend = GetParam().Make();
  const size_t page = shape.page_size * shape.head_size;
  std::vector<float> k(page, NAN), v(page, NAN), out(2 * 64, NAN);
  std::vector<float> qkv = RandomFloats(shape.stride(), &random_);
  const PageMap pages(1, 1, &random_);
  const PagedBatch batch(pages, {{0, 0, 1}});
  const KvLayer kv = {k.data(), v.data(), DType::kF32, shape.page_size};
  const std::vector<float> cos_sin = CosSinTable(64);
  ASSERT_TRUE(backend
                  ->RopeKvWrite({.qkv = qkv.data(),
                                 .num_heads = 2,
                                 .num_kv_heads = 1,
                                 .head_size = 64,
                                 .rotary_size = 64,
                                 .cos_sin = cos_sin.data(),
                                 .batch = &batch.rows(),
                                 .kv = kv})
                  .ok());
  ASSERT_TRUE(backend
                  ->Attention({.q = qkv.data(),
                               .q_stride = shape.stride(),
                               .out = out.data(),
                               .num_heads = 2,
                               .num_kv_heads = 1,
                               .head_size = 64,
                               .scale = 0.125f,
                               .batch = &batch.rows(),
                               .kv = kv})
                  .ok());
  // One visible position: its v, for both heads.
  for (int i = 0; i < 128; ++i) EXPECT_EQ(out[i], qkv[3 * 64 + i % 64]);
}

TEST_P(AttentionTest, RefusesHeadSizesItCantDo) {
  const auto backend = GetParam().Make();
  EXPECT_EQ(backend->Attention({.num_heads = 1, .num_kv_heads = 1, .head_size = 40}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(backend->RopeKvWrite({.num_heads = 1, .num_kv_heads = 1, .head_size = 512}).code(),
            absl::StatusCode::kInvalidArgument);
}

INSTANTIATE_TEST_SUITE_P(Cpu, AttentionTest, testing::ValuesIn(TestBackends()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace penstock::kernels
