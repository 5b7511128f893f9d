// The simple ops on the GPU against kernels/reference or plain loops, over odd shapes.
#include "kernels/cuda/ops.h"

#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <tuple>

#include "gmock/gmock.h"
#include "kernels/random_weight.h"
#include "kernels/reference/reference_ops.h"
#include "tests/gpu/device_array.h"

namespace penstock::kernels::cuda {
namespace {

using Bf16 = __nv_bfloat16;
constexpr double kTolerance = 6e-3;  // relative to the row's scale; bf16 has 8 bits

double Rounded(double value) { return __bfloat162float(__float2bfloat16_rn(value)); }

class GpuOpsTest : public testing::Test {
 protected:
  std::vector<Bf16> RandomBf16(size_t count, float deviation = 1) {
    std::normal_distribution<float> normal(0, deviation);
    std::vector<Bf16> values(count);
    for (Bf16& value : values) value = __float2bfloat16_rn(normal(random_));
    return values;
  }
  std::vector<float> RandomFloats(size_t count) {
    std::normal_distribution<float> normal(0, 1);
    std::vector<float> values(count);
    for (float& value : values) value = normal(random_);
    return values;
  }
  static reference::Matrix AsMatrix(const std::vector<Bf16>& values, int64_t cols) {
    reference::Matrix out{static_cast<int64_t>(values.size()) / cols, cols, {}};
    for (const Bf16 value : values) out.values.push_back(__bfloat162float(value));
    return out;
  }
  static void ExpectNear(const std::vector<Bf16>& got, const std::vector<double>& expected,
                         const std::string& what) {
    ASSERT_EQ(got.size(), expected.size());
    double error = 0, norm = 0, worst = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      const double difference = __bfloat162float(got[i]) - expected[i];
      error += difference * difference;
      norm += expected[i] * expected[i];
      worst = std::max(worst, std::abs(difference) - kTolerance * std::abs(expected[i]));
    }
    EXPECT_LT(std::sqrt(error), kTolerance * std::sqrt(norm) + 1e-9) << what;
    EXPECT_LT(worst, kTolerance * (1 + std::sqrt(norm / static_cast<double>(got.size())))) << what;
  }
  static void ExpectOk(const absl::Status& status) { ASSERT_TRUE(status.ok()) << status; }

  std::mt19937 random_{7};
};

std::vector<Bf16> Poison(size_t count) {
  return std::vector<Bf16>(count, __float2bfloat16_rn(NAN));
}

TEST_F(GpuOpsTest, AddRmsNorm) {
  for (const int hidden : {64, 576, 2048, 4096, 8192, 8200, 16384, 20480}) {
    for (const int tokens : {1, 3, 257, hidden < 8192 ? 1100 : 300}) {  // the last: several a block
      for (const int segments : {0, 1, 3}) {                            // 0: nothing is added
        const size_t size = static_cast<size_t>(tokens) * hidden;
        const auto residual = RandomBf16(size, 3);
        const auto x = RandomBf16(size * std::max(segments, 1));
        const auto weight = RandomFloats(hidden);
        const DeviceVector<Bf16> device_residual(residual), device_x(x), out(Poison(size));
        const DeviceVector<float> device_weight(weight);
        ExpectOk(AddRmsNorm(nullptr, {.x = segments == 0 ? nullptr : device_x.get(),
                                      .num_k_segments = std::max(segments, 1),
                                      .residual = device_residual.get(),
                                      .weight = device_weight.get(),
                                      .out = out.get(),
                                      .num_tokens = tokens,
                                      .hidden = hidden}));
        reference::Matrix sum = AsMatrix(residual, hidden);
        for (int s = 0; s < segments; ++s) {
          for (size_t i = 0; i < size; ++i) sum.values[i] += __bfloat162float(x[s * size + i]);
        }
        const std::string what = std::to_string(hidden) + " x " + std::to_string(tokens);
        ExpectNear(device_residual.Get(), sum.values, what + ", residual");
        for (double& value : sum.values) value = Rounded(value);
        const reference::Matrix zero{sum.rows, sum.cols, std::vector<double>(size)};
        const auto expected = reference::AddRmsNorm(zero, weight, 1e-5, &sum);
        ExpectNear(out.Get(), expected.values, what + ", out");
      }
    }
  }
}

TEST_F(GpuOpsTest, AddRmsNormWithoutOutput) {
  const auto residual = RandomBf16(3 * 576), x = RandomBf16(3 * 576);
  const DeviceVector<Bf16> device_residual(residual), device_x(x);
  ExpectOk(AddRmsNorm(
      nullptr,
      {.x = device_x.get(), .residual = device_residual.get(), .num_tokens = 3, .hidden = 576}));
  auto sum = AsMatrix(residual, 576);
  for (size_t i = 0; i < x.size(); ++i) sum.values[i] += __bfloat162float(x[i]);
  ExpectNear(device_residual.Get(), sum.values, "residual");
}

// Tokens of slots and positions drawn at random, pages in a random order.
struct Batch {
  Batch(int tokens, int slots, int max_position, int page_size, std::mt19937* random)
      : stride((max_position + page_size - 1) / page_size) {
    for (int page = 0; page < slots * stride; ++page) page_table.push_back(page);
    std::shuffle(page_table.begin(), page_table.end(), *random);
    std::vector<int> all(slots * max_position);  // no (slot, position) twice
    for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int>(i);
    std::shuffle(all.begin(), all.end(), *random);
    for (int t = 0; t < tokens; ++t) {
      slot.push_back(all[t] / max_position);
      position.push_back(all[t] % max_position);
    }
    slot.back() = tokens > 1 ? -1 : slot.back();  // a padded token
    device_slot.Set(slot);
    device_position.Set(position);
    device_page_table.Set(page_table);
    rows.num_tokens = tokens;
    rows.page_table = device_page_table.get();
    rows.page_table_stride = stride;
    rows.slot_of_token = device_slot.get();
    rows.position_of_token = device_position.get();
  }
  int stride;
  std::vector<int32_t> page_table, slot, position;
  DeviceVector<int32_t> device_slot{4096}, device_position{4096}, device_page_table{65536};
  BatchRows rows;
};

TEST_F(GpuOpsTest, Embed) {
  constexpr int kVocab = 1000, kStride = 40;
  for (const int hidden : {8, 576, 4096}) {
    for (const float scale : {1.0f, 2.5f}) {
      const Batch batch(257, 10, 33, 16, &random_);
      const auto table = RandomBf16(kVocab * hidden);
      std::vector<int32_t> ids(10 * kStride);
      for (int32_t& id : ids) id = static_cast<int32_t>(random_() % kVocab);
      ids[batch.slot[5] * kStride + batch.position[5]] = kVocab;  // no such id
      ids[batch.slot[6] * kStride + batch.position[6]] = -1;
      const DeviceVector<Bf16> device_table(table), out(Poison(257 * hidden));
      const DeviceVector<int32_t> device_ids(ids);
      ExpectOk(Embed(nullptr, device_table.get(), kVocab, hidden,
                     {.tokens = {device_ids.get(), kStride},
                      .batch = &batch.rows,
                      .out = out.get(),
                      .scale = scale}));
      std::vector<double> expected;
      for (int t = 0; t < 257; ++t) {
        const bool none = t == 5 || t == 6 || batch.slot[t] < 0;
        const int32_t id = none ? 0 : ids[batch.slot[t] * kStride + batch.position[t]];
        for (int i = 0; i < hidden; ++i) {
          expected.push_back(none ? 0 : scale * __bfloat162float(table[id * hidden + i]));
        }
      }
      ExpectNear(out.Get(), expected, "embed");
    }
  }
}

struct RopeShape {
  int heads, kv_heads, head_size, rotary_size, page_size;
};

TEST_F(GpuOpsTest, RopeKvWrite) {
  constexpr int kSlots = 9, kMaxPosition = 100;
  for (const auto& [heads, groups, size, rotary, page_size] :
       {RopeShape{32, 8, 128, 128, 16}, RopeShape{9, 3, 64, 64, 16}, RopeShape{4, 4, 96, 32, 8},
        RopeShape{16, 1, 64, 48, 32}}) {
    for (const bool interleaved : {false, true}) {
      for (const int tokens : {1, 50, 257}) {
        const Batch batch(tokens, kSlots, kMaxPosition, page_size, &random_);
        const int stride = (heads + 2 * groups) * size;
        const auto qkv = RandomBf16(static_cast<size_t>(tokens) * stride);
        std::vector<double> angles(kMaxPosition * rotary / 2);
        std::vector<float> table(kMaxPosition * rotary);
        for (int p = 0; p < kMaxPosition; ++p) {
          for (int i = 0; i < rotary / 2; ++i) {
            const double angle = p / std::pow(10000.0, 2.0 * i / rotary);
            angles[p * rotary / 2 + i] = angle;
            table[p * rotary + i] = static_cast<float>(std::cos(angle));
            table[p * rotary + rotary / 2 + i] = static_cast<float>(std::sin(angle));
          }
        }
        const size_t pages = batch.page_table.size() * groups * page_size * size;
        const DeviceVector<Bf16> device_qkv(qkv), k(RandomBf16(pages)), v(RandomBf16(pages));
        std::vector<double> expected_k = AsMatrix(k.Get(), size).values;
        std::vector<double> expected_v = AsMatrix(v.Get(), size).values;
        const DeviceVector<float> device_table(table);
        ExpectOk(RopeKvWrite(nullptr, {.qkv = device_qkv.get(),
                                       .num_heads = heads,
                                       .num_kv_heads = groups,
                                       .head_size = size,
                                       .rotary_size = rotary,
                                       .interleaved = interleaved,
                                       .cos_sin = device_table.get(),
                                       .batch = &batch.rows,
                                       .kv = {k.get(), v.get(), DType::kBF16, page_size}}));
        std::vector<double> expected = AsMatrix(qkv, size).values;
        for (int t = 0; t < tokens; ++t) {
          if (batch.slot[t] < 0) continue;
          const int position = batch.position[t];
          const int64_t page =
              batch.page_table[batch.slot[t] * batch.stride + position / page_size];
          for (int h = 0; h < heads + 2 * groups; ++h) {
            double* head = &expected[(static_cast<int64_t>(t) * (heads + 2 * groups) + h) * size];
            if (h < heads + groups) {
              reference::Rope({head, static_cast<size_t>(size)}, rotary, interleaved,
                              {&angles[position * rotary / 2], static_cast<size_t>(rotary / 2)});
            }
            if (h < heads) continue;
            auto& out = h < heads + groups ? expected_k : expected_v;
            const int group = (h - heads) % groups;
            std::copy(head, head + size,
                      &out[((page * groups + group) * page_size + position % page_size) * size]);
          }
        }
        const std::string what = "E " + std::to_string(size) + ", rotary " +
                                 std::to_string(rotary) + ", tokens " + std::to_string(tokens);
        ExpectNear(device_qkv.Get(), expected, what + ", qkv");
        ExpectNear(k.Get(), expected_k, what + ", k pages");
        ExpectNear(v.Get(), expected_v, what + ", v pages");
      }
    }
  }
}

TEST_F(GpuOpsTest, GatedActivation) {
  for (const int width : {8, 1536, 14336}) {
    for (const int tokens : {1, 33}) {
      const auto x = RandomBf16(static_cast<size_t>(tokens) * 2 * width, 8);
      const DeviceVector<Bf16> device_x(x), out(Poison(static_cast<size_t>(tokens) * width));
      ExpectOk(GatedActivation(
          nullptr, {.x = device_x.get(), .out = out.get(), .num_tokens = tokens, .width = width}));
      ExpectNear(out.Get(), reference::GatedActivation(AsMatrix(x, 2 * width)).values, "silu");
    }
  }
}

TEST_F(GpuOpsTest, GatherRows) {
  constexpr int kHidden = 576;
  const auto x = RandomBf16(100 * kHidden);
  const std::vector<int32_t> index = {99, 0, -1, 5, 5, 64};
  const DeviceVector<Bf16> device_x(x), out(Poison(index.size() * kHidden));
  const DeviceVector<int32_t> device_index(index);
  ExpectOk(GatherRows(nullptr, {.x = device_x.get(),
                                .index = device_index.get(),
                                .out = out.get(),
                                .count = static_cast<int32_t>(index.size()),
                                .hidden = kHidden}));
  std::vector<double> expected;
  for (const int32_t row : index) {
    for (int i = 0; i < kHidden; ++i) {
      expected.push_back(row < 0 ? 0 : __bfloat162float(x[row * kHidden + i]));
    }
  }
  const auto got = out.Get();
  for (size_t i = 0; i < got.size(); ++i) ASSERT_EQ(__bfloat162float(got[i]), expected[i]) << i;
}

TEST_F(GpuOpsTest, ConvertAndRandomWeights) {
  for (const int64_t count : {1, 7, 8, 2051, 3000001}) {
    const auto values = RandomFloats(count);
    const DeviceVector<float> source(values);
    const DeviceVector<Bf16> out(Poison(count));
    ExpectOk(ConvertToBf16(nullptr, source.get(), DType::kF32, out.get(), count));
    auto got = out.Get();
    for (int64_t i = 0; i < count; ++i) {
      ASSERT_EQ(__bfloat162float(got[i]), Rounded(values[i])) << i;
    }
    ExpectOk(FillRandomWeight(nullptr, out.get(), count, 99, 5));
    got = out.Get();
    for (int64_t i = 0; i < count; ++i) {
      ASSERT_EQ(__bfloat162float(got[i]), Rounded(RandomWeightValue(99, 5 + i))) << i;
    }
  }
  // Powers of two and their neighbours are the same in f16 and f32.
  const std::vector<uint16_t> halves = {0x3c00, 0xbc00, 0x0001, 0x7bff, 0x0400,
                                        0,      0x3555, 0x4248, 1};
  const std::vector<double> as_double = {1, -1,      0x1p-24,  65504,  0x1p-14,
                                         0, 0.33325, 3.140625, 0x1p-24};
  const DeviceVector<uint16_t> source(halves);
  const DeviceVector<Bf16> out(Poison(halves.size()));
  ExpectOk(ConvertToBf16(nullptr, source.get(), DType::kF16, out.get(), halves.size()));
  const auto got = out.Get();
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_NEAR(__bfloat162float(got[i]), as_double[i], std::abs(as_double[i]) * 4e-3);
  }
}

TEST_F(GpuOpsTest, TokensAndPages) {
  constexpr int kStride = 5000, kSlots = 4;
  std::vector<int32_t> staged(6000), table(kSlots * kStride, -7);
  for (size_t i = 0; i < staged.size(); ++i) staged[i] = static_cast<int32_t>(i * 3);
  const std::vector<TokenRun> runs = {
      {2, 0, 0, 4999}, {-1, 0, 0, 100}, {0, 17, 4999, 1}, {3, 5, 5000, 1000}};
  DeviceVector<int32_t> device_staged(staged), device_table(table);
  const DeviceVector<TokenRun> device_runs(runs);
  ExpectOk(CopyTokens(nullptr, device_runs.get(), 4, device_staged.get(),
                      {device_table.get(), kStride}));
  for (const TokenRun& run : runs) {
    for (int i = 0; run.slot >= 0 && i < run.count; ++i) {
      table[run.slot * kStride + run.position + i] = staged[run.begin + i];
    }
  }
  EXPECT_EQ(device_table.Get(), table);
  std::vector<PageEntry> entries;
  for (int i = 0; i < 600; ++i) entries.push_back({i % 7 == 0 ? -1 : i % kSlots, i, 1000 + i});
  const DeviceVector<PageEntry> device_entries(entries);
  ExpectOk(ScatterPages(nullptr, device_entries.get(), 600, device_table.get(), kStride));
  for (const auto& [slot, index, page] : entries) {
    if (slot >= 0) table[slot * kStride + index] = page;
  }
  EXPECT_EQ(device_table.Get(), table);
}

TEST_F(GpuOpsTest, CopyPages) {
  constexpr int kPages = 400;
  // More layers, and more copies, than one launch takes.
  for (const auto& [num_layers, num_copies, elements] :
       {std::tuple{3, 1, 8 * 16 * 128}, {2, 150, 264}, {130, 5, 8}}) {
    std::vector<std::unique_ptr<DeviceVector<Bf16>>> buffers;
    std::vector<std::vector<Bf16>> before;
    std::vector<KvLayer> layers(num_layers);
    for (KvLayer& layer : layers) {
      for (void** pages : {&layer.k, &layer.v}) {
        before.push_back(RandomBf16(static_cast<size_t>(kPages) * elements));
        buffers.push_back(std::make_unique<DeviceVector<Bf16>>(before.back()));
        *pages = buffers.back()->get();
      }
      layer.dtype = DType::kBF16;
      layer.page_size = 8;
    }
    std::vector<int32_t> order(kPages);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random_);
    std::vector<PageCopy> copies;  // some from the same page
    for (int i = 0; i < num_copies; ++i) copies.push_back({order[kPages - 1 - i / 2], order[i]});
    ExpectOk(CopyPages(nullptr, {layers, elements, copies}));
    for (size_t i = 0; i < buffers.size(); ++i) {
      std::vector<Bf16> expected = before[i];
      for (const PageCopy& copy : copies) {
        std::copy_n(before[i].begin() + int64_t{copy.from} * elements, elements,
                    expected.begin() + int64_t{copy.to} * elements);
      }
      const auto got = buffers[i]->Get();
      ASSERT_EQ(std::memcmp(got.data(), expected.data(), got.size() * sizeof(Bf16)), 0) << i;
    }
  }
}

TEST_F(GpuOpsTest, BadShapesAreErrors) {
  const KvLayer layer{.dtype = DType::kBF16};
  const PageCopy copy{0, 1};
  EXPECT_EQ(CopyPages(nullptr, {{&layer, 1}, 12, {&copy, 1}}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(AddRmsNorm(nullptr, {.num_tokens = 1, .hidden = 100}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(GatedActivation(nullptr, {.num_tokens = 1, .width = 12}).code(),
            absl::StatusCode::kInvalidArgument);
  BatchRows batch{.num_tokens = 1};
  EXPECT_EQ(RopeKvWrite(nullptr, {.head_size = 100, .rotary_size = 100, .batch = &batch}).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace penstock::kernels::cuda
