// The CUDA attention kernels against a double reference, over odd shapes.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>

#include "common/status.h"
#include "tests/gpu/attention_case.h"

namespace penstock::kernels::cuda {
namespace {

// bf16 weights and outputs: each rounds by up to 2^-9.
constexpr double kTolerance = 8e-3;

std::unique_ptr<Attention> Make(const AttentionConfig& config) {
  auto attention = Attention::Create(config);
  if (!attention.ok()) {
    ADD_FAILURE() << Message(attention.status());
    return nullptr;
  }
  return std::move(*attention);
}

void RunOnce(Attention& attention, const AttentionCase& c, cudaStream_t stream = nullptr) {
  const absl::Status planned = attention.Plan(c.batch(), stream);
  ASSERT_TRUE(planned.ok()) << Message(planned);
  const absl::Status ran = attention.Run(c.Params(&c.batch()), stream);
  ASSERT_TRUE(ran.ok()) << Message(ran);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess) << cudaGetErrorString(cudaGetLastError());
}

void Check(const CaseShape& shape, uint64_t seed, PrefillPath path = PrefillPath::kBest,
           int variant = -1, int snap_tokens = 128) {
  AttentionCase c(shape, seed);
  AttentionConfig config = c.Config();
  config.prefill = path;
  config.decode_variant = variant;
  config.decode_snap_tokens = snap_tokens;
  const auto attention = Make(config);
  ASSERT_NE(attention, nullptr);
  RunOnce(*attention, c);
  if (testing::Test::HasFatalFailure()) return;
  EXPECT_LT(c.WorstError(), kTolerance) << "seed " << seed;
}

std::vector<RowShape> RandomSingles(int count, int longest, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<RowShape> rows(count);
  for (RowShape& row : rows) {
    // Mostly short ones, some at the borders of pages and tiles.
    const int kind = static_cast<int>(random() % 4);
    const int any = 1 + static_cast<int>(random() % longest);
    row.context = kind == 0   ? any
                  : kind == 1 ? std::min(longest, 16 * (1 + any % 24))
                              : 1 + any % 200;
    if (kind == 2) row.context = std::min(longest, 64 * (1 + any % 5) + 1);
  }
  return rows;
}

struct Shape {
  int heads, kv_heads, head_size, page_size;
};

std::string ShapeName(const testing::TestParamInfo<Shape>& info) {
  const Shape& s = info.param;
  return fmt::format("H{}G{}E{}P{}", s.heads, s.kv_heads, s.head_size, s.page_size);
}

class AttentionShapes : public testing::TestWithParam<Shape> {
 protected:
  CaseShape Make(std::vector<RowShape> rows) const {
    const Shape& s = GetParam();
    return {s.heads, s.kv_heads, s.head_size, s.page_size, std::move(rows)};
  }
};

TEST_P(AttentionShapes, OneRow) {
  for (int context : {1, 15, 16, 17, 63, 64, 65, 129, 1000}) Check(Make({{context, 1}}), context);
}

TEST_P(AttentionShapes, ManyRows) {
  for (int rows : {2, 7, 33, 257}) {
    Check(Make(RandomSingles(rows, rows < 40 ? 2000 : 500, rows)), 100 + rows);
  }
}

TEST_P(AttentionShapes, PortablePrefill) {
  Check(Make({{1, 1}, {2, 2}, {130, 130}, {257, 63}, {700, 129}, {33, 32}}), 7,
        PrefillPath::kPortable);
}

TEST_P(AttentionShapes, BestPrefill) {
  Check(Make({{2, 2}, {130, 130}, {257, 63}, {700, 129}, {33, 32}, {513, 500}}), 8);
}

TEST_P(AttentionShapes, SinglesAndChunks) {
  Check(Make({{300, 1}, {1, 1}, {65, 1}, {1200, 1}, {90, 17}, {500, 300}, {300, 300}}), 9);
}

INSTANTIATE_TEST_SUITE_P(All, AttentionShapes,
                         testing::Values(Shape{8, 2, 128, 16}, Shape{9, 3, 64, 16},
                                         Shape{2, 2, 128, 16}, Shape{16, 1, 128, 16},
                                         Shape{12, 1, 64, 32}, Shape{14, 2, 128, 8},
                                         Shape{10, 2, 64, 8}, Shape{6, 3, 128, 64}),
                         ShapeName);

TEST(Attention, EveryDecodeVariant) {
  for (int variant = 0; variant < static_cast<int>(DecodeVariants().size()); ++variant) {
    SCOPED_TRACE("variant " + std::to_string(variant));
    for (const int snap_tokens : {0, 128, 400}) {
      const uint64_t seed = 200 + variant * 3 + snap_tokens;
      Check({32, 8, 128, 16, RandomSingles(19, 1500, seed)}, seed, PrefillPath::kBest, variant,
            snap_tokens);
      Check({32, 8, 128, 16, {{3000, 1}}}, seed, PrefillPath::kBest, variant, snap_tokens);
    }
  }
}

TEST(Attention, FiveThousandTokens) {
  Check({32, 8, 128, 16, {{5000, 1}, {1, 1}, {4999, 1}, {4801, 1}, {5000, 130}}}, 11);
}

TEST(Attention, LongContext) { Check({8, 2, 128, 16, {{32768, 1}, {5, 1}, {32768, 200}}}, 12); }

TEST(Attention, ChunksEqualTheWholePrompt) {
  const CaseShape whole{8, 2, 128, 16, {{777, 777}}};
  for (const PrefillPath path : {PrefillPath::kPortable, PrefillPath::kBest}) {
    AttentionCase c(whole, 13);
    AttentionConfig config = c.Config();
    config.prefill = path;
    const auto attention = Make(config);
    ASSERT_NE(attention, nullptr);
    for (const RowShape& chunk : {RowShape{200, 200}, RowShape{201, 1}, RowShape{777, 576}}) {
      c.SetRows({chunk});
      RunOnce(*attention, c);
      EXPECT_LT(c.WorstError(), kTolerance) << chunk.context;
    }
  }
}

// One graph, several mixes of lengths: the plan is made on the device. Rows of no tokens are
// padding.
TEST(Attention, GraphFollowsTheLengths) {
  const std::vector<RowShape> largest(6, {900, 1});
  AttentionCase c({32, 8, 128, 16, largest}, 14);
  const auto attention = Make(c.Config());
  ASSERT_NE(attention, nullptr);
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  DeviceArray<int32_t> lengths(std::vector<int32_t>(6, 900));
  BatchRows batch = c.batch();
  batch.context_len = lengths.get();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  ASSERT_TRUE(attention->Plan(batch, stream).ok());
  for (int layer = 0; layer < 3; ++layer) {
    ASSERT_TRUE(attention->Run(c.Params(&batch), stream).ok());
  }
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  // The same queries at every length: a row's context then only says how far it looks.
  for (const std::vector<int32_t>& mix : {std::vector<int32_t>{900, 900, 900, 900, 900, 900},
                                          {1, 2, 3, 0, 0, 0},
                                          {0, 0, 0, 0, 0, 0},
                                          {64, 0, 900, 0, 65, 1}}) {
    lengths.Set(mix);
    c.PoisonOutput();
    for (int replay = 0; replay < 3; ++replay) {
      ASSERT_EQ(cudaGraphLaunch(exec, stream), cudaSuccess);
    }
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    const std::vector<uint16_t> graphed = c.Output();
    c.PoisonOutput();
    ASSERT_TRUE(attention->Plan(batch, stream).ok());
    ASSERT_TRUE(attention->Run(c.Params(&batch), stream).ok());
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    EXPECT_EQ(graphed, c.Output()) << "a graph and a plain call differ";
    const size_t row_size = graphed.size() / mix.size();
    for (size_t row = 0; row < mix.size(); ++row) {
      size_t zeros = 0;
      for (size_t i = 0; i < row_size; ++i) zeros += graphed[row * row_size + i] == 0;
      if (mix[row] == 0) {
        EXPECT_EQ(zeros, row_size) << "padding row " << row;
      } else {
        EXPECT_LT(zeros, row_size / 4) << "row " << row;
      }
    }
    if (mix[5] == 900) {
      EXPECT_LT(c.WorstError(), kTolerance);
    }
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST(Attention, SameBitsEveryTime) {
  AttentionCase c({32, 8, 128, 16, RandomSingles(40, 3000, 5)}, 15);
  const auto attention = Make(c.Config());
  ASSERT_NE(attention, nullptr);
  RunOnce(*attention, c);
  const std::vector<uint16_t> first = c.Output();
  for (int again = 0; again < 20; ++again) {
    c.PoisonOutput();
    RunOnce(*attention, c);
    ASSERT_EQ(c.Output(), first);
  }
}

TEST(Attention, RefusesShapesItHasNoKernelFor) {
  AttentionConfig config{8, 2, 96, 16, 4, 64};
  EXPECT_EQ(Attention::Create(config).status().code(), absl::StatusCode::kUnimplemented);
  config.head_size = 128;
  config.page_size = 12;
  EXPECT_EQ(Attention::Create(config).status().code(), absl::StatusCode::kInvalidArgument);
  config.page_size = 16;
  config.num_heads = 7;
  EXPECT_EQ(Attention::Create(config).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace penstock::kernels::cuda
