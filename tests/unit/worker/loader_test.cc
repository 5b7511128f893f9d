#include "worker/weights/loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/status.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/unit/worker/tiny_model.h"
#include "worker/weights/checkpoint.h"

namespace penstock::worker {
namespace {

using testing::HasSubstr;

std::unique_ptr<kernels::Backend> Float32Backend() {
  return kernels::cpu::MakeCpuBackend({.mode = kernels::cpu::Mode::kFloat32, .threads = 1});
}

absl::Status Load(TinyModel* model, const Shard& shard = {}) {
  ASSIGN_OR_RETURN(const Checkpoint checkpoint, OpenCheckpoint(model->WriteFile(), true));
  const ModelSpec& spec = checkpoint.spec;
  const auto backend = Float32Backend();
  return LoadWeights(checkpoint.tensors.get(), spec, shard, spec.max_positions, backend.get(),
                     [](float) { return absl::OkStatus(); })
      .status();
}

TEST(LoaderTest, SharesHaveTheRanksRowsAndColumns) {
  TinyModel model(
      {.heads = 4, .kv_heads = 2, .head_size = 32, .mlp = 128, .tied = false, .biases = true});
  const auto checkpoint = OpenCheckpoint(model.WriteFile(), true);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const ModelSpec& spec = checkpoint->spec;
  const auto backend = Float32Backend();
  ASSERT_TRUE(backend
                  ->Reserve({.max_tokens = 64,
                             .max_rows = 64,
                             .max_logits = 64,
                             .max_width = 256,
                             .vocab_size = spec.vocab_size})
                  .ok());
  float last = 0;
  auto progress = [&last](float done) {
    EXPECT_GE(done, last);
    last = done;
    return absl::OkStatus();
  };
  const auto whole =
      LoadWeights(checkpoint->tensors.get(), checkpoint->spec, {0, 1}, 64, backend.get(), progress);
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_EQ(last, 1.0f);
  // x * W^T for x the identity gives W's columns: compare shares with the whole that way.
  auto columns = [&](const kernels::Weight& weight, const float* bias) {
    std::vector<float> identity(weight.cols * weight.cols), out(weight.cols * weight.rows);
    for (int64_t i = 0; i < weight.cols; ++i) identity[i * weight.cols + i] = 1;
    for (int64_t t = 0; t < weight.cols; t += 64) {
      const int n = static_cast<int>(std::min<int64_t>(64, weight.cols - t));
      EXPECT_TRUE(backend
                      ->Linear({.x = identity.data() + t * weight.cols,
                                .x_stride = weight.cols,
                                .weight = &weight,
                                .bias = bias,
                                .out = out.data() + t * weight.rows,
                                .num_tokens = n})
                      .ok());
    }
    return out;
  };
  const LayerWeights& a = whole->layers[1];
  const auto qkv = columns(*a.qkv, a.qkv_bias->as<float>());
  const auto o = columns(*a.o, nullptr), gate_up = columns(*a.gate_up, nullptr);
  const auto down = columns(*a.down, nullptr), head = columns(*whole->head, nullptr);
  for (int rank = 0; rank < 2; ++rank) {
    const auto part = LoadWeights(checkpoint->tensors.get(), checkpoint->spec, {rank, 2}, 64,
                                  backend.get(), [](float) { return absl::OkStatus(); });
    ASSERT_TRUE(part.ok()) << part.status();
    const LayerWeights& b = part->layers[1];
    const auto part_qkv = columns(*b.qkv, b.qkv_bias->as<float>());
    ASSERT_EQ(b.qkv->rows, 128);
    for (int d = 0; d < 64; ++d) {
      for (int i = 0; i < 64; ++i) {  // two heads of q
        EXPECT_EQ(part_qkv[d * 128 + i], qkv[d * 256 + rank * 64 + i]);
      }
      for (int i = 0; i < 32; ++i) {  // a head of k, one of v
        EXPECT_EQ(part_qkv[d * 128 + 64 + i], qkv[d * 256 + 128 + rank * 32 + i]);
        EXPECT_EQ(part_qkv[d * 128 + 96 + i], qkv[d * 256 + 192 + rank * 32 + i]);
      }
    }
    const auto part_gate_up = columns(*b.gate_up, nullptr);
    for (int d = 0; d < 64; ++d) {
      for (int i = 0; i < 64; ++i) {
        EXPECT_EQ(part_gate_up[d * 128 + i], gate_up[d * 256 + rank * 64 + i]);
        EXPECT_EQ(part_gate_up[d * 128 + 64 + i], gate_up[d * 256 + 128 + rank * 64 + i]);
      }
    }
    // A share of columns: its rows of the transposed are consecutive.
    auto half = [rank](const std::vector<float>& all) {
      const auto begin = all.begin() + rank * (static_cast<ptrdiff_t>(all.size()) / 2);
      return std::vector<float>(begin, begin + static_cast<ptrdiff_t>(all.size()) / 2);
    };
    EXPECT_EQ(columns(*b.o, nullptr), half(o));
    EXPECT_EQ(columns(*b.down, nullptr), half(down));
    const auto part_head = columns(*part->head, nullptr);
    for (int d = 0; d < 64; ++d) {
      for (int i = 0; i < 48; ++i) {
        EXPECT_EQ(part_head[d * 48 + i], head[d * 96 + rank * 48 + i]);
      }
    }
    EXPECT_EQ(b.o_bias != nullptr, rank == 0);
  }
}

TEST(LoaderTest, SizesThatDoNotDivideNameThoseThatWould) {
  TinyModel model({.heads = 4, .kv_heads = 2});
  EXPECT_THAT(Message(Load(&model, {0, 3})),
              AllOf(HasSubstr("--tensor-parallel-size 3"), HasSubstr("sizes that work: 1, 2")));
  TinyModel vocab({.heads = 4, .kv_heads = 4, .vocab = 98});
  EXPECT_THAT(Message(Load(&vocab, {0, 4})),
              AllOf(HasSubstr("vocabulary of 98"), HasSubstr("sizes that work: 1, 2")));
  // 128 columns in blocks of 32 can be cut in 4, 96 of them in 3 only.
  TinyModel blocks({.heads = 4, .kv_heads = 4, .mlp = 96, .q8_0 = true});
  EXPECT_THAT(Message(Load(&blocks, {0, 2})),
              AllOf(HasSubstr("quantisation block of 32"), HasSubstr("sizes that work: 1")));
  EXPECT_TRUE(Load(&blocks, {0, 1}).ok());
}

TEST(LoaderTest, MissingTensorIsNamed) {
  TinyModel model({});
  model.tensors.erase("blk.1.ffn_down.weight");
  EXPECT_THAT(Message(Load(&model)), HasSubstr("blk.1.ffn_down.weight"));
}

TEST(LoaderTest, WrongShapeIsNamedWithBothShapes) {
  TinyModel model({});
  model.tensors["blk.0.attn_k.weight"].dims = {32, 128};
  EXPECT_THAT(Message(Load(&model)),
              AllOf(HasSubstr("blk.0.attn_k.weight is [32, 128]"), HasSubstr("[64, 64]")));
  TinyModel norm({});
  norm.tensors["blk.0.attn_norm.weight"].dims = {32, 2};
  EXPECT_THAT(Message(Load(&norm)), HasSubstr("blk.0.attn_norm.weight"));
}

TEST(LoaderTest, TensorOfNoUseIsRefused) {
  TinyModel model({});
  model.tensors["blk.0.attn_q_norm.weight"] = model.tensors["blk.0.attn_norm.weight"];
  EXPECT_THAT(Message(Load(&model)), HasSubstr("attn_q_norm"));
}

TEST(LoaderTest, TypeThatIsNoWeightIsRefused) {
  TinyModel model({});
  model.tensors["blk.0.ffn_up.weight"].type = 26;  // I32
  EXPECT_THAT(Message(Load(&model)), HasSubstr("I32"));
}

TEST(LoaderTest, ProgressMayStopIt) {
  TinyModel model({});
  const auto checkpoint = OpenCheckpoint(model.WriteFile(), true);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto backend = Float32Backend();
  const auto weights = LoadWeights(checkpoint->tensors.get(), checkpoint->spec, {}, 64,
                                   backend.get(), [](float) { return Cancelled("enough"); });
  EXPECT_EQ(weights.status().code(), absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace penstock::worker
