// How prefill attention's work is dealt to blocks: on the host, so tested without a GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <tuple>
#include <vector>

#include "kernels/cuda/attention_prefill.h"

namespace penstock::kernels::cuda {
namespace {

struct Batch {
  explicit Batch(const std::vector<std::pair<int, int>>& tokens_and_contexts) {
    begin.push_back(0);
    for (const auto& [tokens, context] : tokens_and_contexts) {
      if (tokens == 1 && rows.num_single == rows.num_rows) ++rows.num_single;
      ++rows.num_rows;
      begin.push_back(begin.back() + tokens);
      lengths.push_back(context);
    }
    rows.num_tokens = begin.back();
    rows.host_token_begin = begin.data();
    rows.host_context_len = lengths.data();
  }
  std::vector<int32_t> begin, lengths;
  BatchRows rows;
};

PrefillConfig Config(const Batch& batch) {
  PrefillConfig config{8, 2, 128, 16, batch.rows.num_rows, batch.rows.num_tokens};
  config.num_blocks = 132;
  config.tile_queries = 128;
  return config;
}

TEST(PrefillPlan, DealsEveryTileOnceAndEvenly) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 30; ++trial) {
    std::vector<std::pair<int, int>> shape(random() % 5, std::pair(1, 300));
    const int chunks = 1 + static_cast<int>(random() % 20);
    for (int i = 0; i < chunks; ++i) {
      const int tokens = 2 + static_cast<int>(random() % 1500);
      shape.emplace_back(tokens, tokens + static_cast<int>(random() % 3000));
    }
    const Batch batch(shape);
    const PrefillConfig config = Config(batch);
    std::vector<char> memory(PrefillItemsBytes(config));
    PrefillPlanner planner(config);
    const auto count = planner.Plan(batch.rows, memory.data());
    ASSERT_TRUE(count.ok());
    const PrefillItems items = LayOutPrefillItems(config, *count, memory.data());
    EXPECT_EQ(items.first_item[0], 0);
    EXPECT_EQ(items.first_item[config.num_blocks], static_cast<int>(*count));

    std::set<std::tuple<int, int, int>> seen;
    int64_t largest = 0, total = 0, longest_item = 0;
    for (int block = 0; block < config.num_blocks; ++block) {
      int64_t load = 0;
      for (int i = items.first_item[block]; i < items.first_item[block + 1]; ++i) {
        const int row = items.row[i];
        EXPECT_TRUE(seen.emplace(row, items.head[i], items.tile[i]).second);
        EXPECT_EQ(items.token_begin[i], batch.begin[row]);
        EXPECT_EQ(items.query_len[i], batch.begin[row + 1] - batch.begin[row]);
        EXPECT_EQ(items.context_len[i], batch.lengths[row]);
        const int before = batch.lengths[row] - items.query_len[i];
        const int64_t cost = std::min(batch.lengths[row], before + 128 * (items.tile[i] + 1)) + 64;
        load += cost;
        longest_item = std::max(longest_item, cost);
      }
      largest = std::max(largest, load);
      total += load;
    }
    size_t expected = 0;
    for (int row = batch.rows.num_single; row < batch.rows.num_rows; ++row) {
      expected += (batch.begin[row + 1] - batch.begin[row] + 127) / 128 * config.num_heads;
    }
    EXPECT_EQ(seen.size(), expected);
    // Graham's bound for the longest first: 4/3 of the best, which is no less than these two.
    EXPECT_LE(largest,
              std::max(total / config.num_blocks, longest_item) * 4 / 3 + longest_item / 3);
  }
}

TEST(PrefillPlan, RefusesWhatItWasNotMadeFor) {
  const Batch small({{10, 10}});
  PrefillPlanner planner(Config(small));
  std::vector<char> memory(PrefillItemsBytes(Config(small)));
  EXPECT_EQ(planner.Plan(Batch({{1000, 1000}}).rows, memory.data()).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(planner.Plan(Batch({{10, 9}}).rows, memory.data()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace penstock::kernels::cuda
