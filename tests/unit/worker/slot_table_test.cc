#include "worker/slot_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "common/status.h"
#include "worker/step_batch.h"

namespace penstock::worker {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class SlotTableTest : public testing::Test {
 protected:
  SlotTableTest()
      : slots_({.num_slots = 4,
                .num_pages = 10,
                .page_size = 4,
                .max_model_len = 20,
                .vocab_size = 50}),
        batch_(16, 4),
        arena_(1024) {
    const int32_t ids[] = {5, 6, 7, 8, 9, 10};
    std::memcpy(arena_.data(), ids, sizeof(ids));
    request_.generation = 1;
    request_.prompt_len = 5;
    request_.known_len = 6;
    request_.sampling.num_top_logprobs = -1;
  }

  absl::Status Bind(uint32_t slot) {
    std::span<const int32_t> known;
    return slots_.Bind({slot, 1}, request_, arena_, &known);
  }
  void BindWithPages(uint32_t slot, const std::vector<uint32_t>& pages) {
    ASSERT_TRUE(Bind(slot).ok());
    for (const uint32_t page : pages) ASSERT_TRUE(slots_.Append({slot, page}).ok());
  }
  absl::Status Build(std::vector<shm::PlanRow> rows) {
    StepPlan plan;
    plan.step = ++step_;
    plan.rows = rows;
    return batch_.Build(plan, &slots_);
  }

  SlotTable slots_;
  StepBatch batch_;
  std::vector<std::byte> arena_;
  shm::RequestSlot request_ = {};
  uint64_t step_ = 0;
};

template <typename T>
std::vector<T> Vector(const T* values, int n) {
  return {values, values + n};
}

TEST_F(SlotTableTest, BatchLaysRowsOut) {
  BindWithPages(2, {7, 3});
  BindWithPages(0, {1});
  ASSERT_TRUE(Build({{2, 1, 5, shm::kRowSample}, {0, 0, 3, 0}}).ok());
  const kernels::BatchRows rows = batch_.inputs().rows;
  EXPECT_EQ(rows.num_rows, 2);
  EXPECT_EQ(rows.num_tokens, 8);
  EXPECT_THAT(Vector(rows.token_begin, 3), ElementsAre(0, 5, 8));
  EXPECT_THAT(Vector(rows.context_len, 2), ElementsAre(6, 3));
  EXPECT_THAT(Vector(rows.page_table + 2 * rows.page_table_stride, 2), ElementsAre(7, 3));
  EXPECT_EQ(rows.page_table[0], 1);
  EXPECT_THAT(Vector(rows.slot_of_token, 8), ElementsAre(2, 2, 2, 2, 2, 0, 0, 0));
  EXPECT_THAT(Vector(rows.position_of_token, 8), ElementsAre(1, 2, 3, 4, 5, 0, 1, 2));
  ASSERT_EQ(batch_.outputs().size(), 1);
  EXPECT_EQ(batch_.inputs().output_token[0], 4);
  EXPECT_EQ(batch_.sample_rows()[0].position, 6);
  EXPECT_EQ(batch_.sample_rows()[0].prompt_len, 5);
  EXPECT_EQ(batch_.sample_rows()[0].num_top, -1);
}

TEST_F(SlotTableTest, PromptLogprobsAskForTheNextIdsOfThePrompt) {
  request_.sampling.num_prompt_logprobs = 3;
  request_.sampling.num_top_logprobs = 2;
  BindWithPages(0, {1, 2});
  const uint32_t flags = shm::kRowPromptLogprobs | shm::kRowSample;
  ASSERT_TRUE(Build({{0, 2, 4, flags}}).ok());
  // Tokens 2 and 3 are followed by the prompt's ids 3 and 4; 4 by an output; 5 is sampled after.
  ASSERT_EQ(batch_.outputs().size(), 3);
  EXPECT_EQ(batch_.sample_rows()[0].target_id, 8);
  EXPECT_EQ(batch_.sample_rows()[0].position, 3);
  EXPECT_EQ(batch_.sample_rows()[0].num_top, 3);
  EXPECT_EQ(batch_.sample_rows()[1].target_id, 9);
  EXPECT_TRUE(batch_.outputs()[1].is_prompt);
  EXPECT_EQ(batch_.sample_rows()[2].target_id, -1);
  EXPECT_EQ(batch_.sample_rows()[2].position, 6);
  EXPECT_EQ(batch_.sample_rows()[2].num_top, 2);
}

TEST_F(SlotTableTest, AStepMayUseTheIdOfTheOneBeforeIt) {
  BindWithPages(0, {1, 2});
  EXPECT_FALSE(Build({{0, 6, 1, 0}}).ok());
  ASSERT_TRUE(Build({{0, 0, 6, shm::kRowSample}}).ok());
  EXPECT_TRUE(Build({{0, 6, 1, shm::kRowSample}}).ok());
  EXPECT_TRUE(Build({{0, 7, 1, shm::kRowSample}}).ok());
  // Eight tokens fill the two pages.
  EXPECT_THAT(Message(Build({{0, 8, 1, shm::kRowSample}})), HasSubstr("2 pages"));
}

TEST_F(SlotTableTest, ReleasedSlotsCanBeBoundAnew) {
  BindWithPages(1, {1, 2});
  EXPECT_FALSE(Bind(1).ok());
  EXPECT_FALSE(slots_.Release({1, 2}).ok());  // another generation
  ASSERT_TRUE(slots_.Release({1, 1}).ok());
  EXPECT_FALSE(slots_.Release({1, 1}).ok());
  ASSERT_TRUE(Bind(1).ok());
  EXPECT_EQ(slots_.state(1).num_pages, 0);
  EXPECT_EQ(slots_.num_bound(), 1);
}

TEST_F(SlotTableTest, PlansOutOfBoundsAreRefused) {
  EXPECT_THAT(Message(Build({{3, 0, 1, 0}})), HasSubstr("not bound"));
  EXPECT_THAT(Message(Build({{4000, 0, 1, 0}})), HasSubstr("not bound"));
  BindWithPages(0, {1, 2});
  EXPECT_FALSE(slots_.Append({0, 10}).ok());
  EXPECT_FALSE(slots_.Append({1, 1}).ok());
  EXPECT_FALSE(Build({{0, 0, 0, 0}}).ok());
  EXPECT_FALSE(Build({{0, UINT32_MAX, 2, 0}}).ok());
  EXPECT_THAT(Message(Build({{0, 0, 4, shm::kRowSample}})), HasSubstr("inside its prompt"));
  EXPECT_THAT(Message(Build({{0, 0, 2, 0}, {0, 2, 1, 0}})), HasSubstr("two rows"));
  EXPECT_THAT(Message(Build({{0, 0, 17, 0}})), HasSubstr("17 tokens"));
  for (uint32_t page = 3; page < 6; ++page) ASSERT_TRUE(slots_.Append({0, page}).ok());
  EXPECT_FALSE(slots_.Append({0, 6}).ok());  // more than max_model_len needs
}

TEST_F(SlotTableTest, RequestObjectsOutOfBoundsAreRefused) {
  const shm::RequestSlot good = request_;
  auto expect_refused = [&](auto change, const char* message) {
    request_ = good;
    change(&request_);
    EXPECT_THAT(Message(Bind(0)), HasSubstr(message));
  };
  expect_refused([](auto* r) { r->generation = 2; }, "generation 1");
  expect_refused([](auto* r) { r->prompt_len = 0; }, "prompt of 0");
  expect_refused([](auto* r) { r->prompt_len = 7; }, "prompt of 7");
  expect_refused([](auto* r) { r->known_len = 21; }, "at most 20");
  expect_refused([](auto* r) { r->ids_offset = 1020; }, "outside the arena");
  expect_refused([](auto* r) { r->ids_offset = UINT64_MAX - 3; }, "outside the arena");
  expect_refused([](auto* r) { r->ids_offset = 2; }, "outside the arena");
  expect_refused([](auto* r) { r->sampling.num_stop_ids = 1000; }, "stop ids");
  expect_refused([](auto* r) { r->sampling.num_logit_bias = 200; }, "logit biases");
  const int32_t bad = -1;
  std::memcpy(arena_.data() + 4, &bad, sizeof(bad));
  expect_refused([](auto*) {}, "outside the vocabulary");
  EXPECT_EQ(slots_.num_bound(), 0);
}

TEST_F(SlotTableTest, CopiesOfPagesThatAreNotAreRefused) {
  auto build = [&](std::vector<shm::PlanCopy> copies) {
    StepPlan plan;
    plan.step = ++step_;
    plan.copies = copies;
    return batch_.Build(plan, &slots_);
  };
  ASSERT_TRUE(build({{0, 9}, {0, 3}}).ok());
  ASSERT_EQ(batch_.copies().size(), 2u);
  EXPECT_EQ(batch_.copies()[1].from, 0);
  EXPECT_EQ(batch_.copies()[1].to, 3);
  EXPECT_THAT(Message(build({{0, 10}})), HasSubstr("page 0 to 10, of 10"));
  EXPECT_THAT(Message(build({{10, 0}})), HasSubstr("page 10 to 0, of 10"));
  EXPECT_FALSE(build({{UINT32_MAX, 0}}).ok());
  EXPECT_FALSE(build({{4, 4}}).ok());
  EXPECT_THAT(Message(build({{0, 1}, {0, 2}, {0, 3}, {0, 4}, {0, 5}})), HasSubstr("5 pages"));
  ASSERT_TRUE(Build({}).ok());
  EXPECT_TRUE(batch_.copies().empty());
}

TEST(ParseStepTest, RecordsMustBeAsLongAsTheySay) {
  alignas(8) std::byte bytes[256] = {};
  auto* header = new (bytes) shm::PlanHeader();
  header->num_rows = 2;
  header->num_binds = 1;
  header->bytes = sizeof(shm::PlanHeader) + 8 + 32;
  StepPlan plan;
  EXPECT_TRUE(ParseStep(*header, &plan).ok());
  EXPECT_EQ(plan.rows.size(), 2u);
  EXPECT_EQ(plan.binds.size(), 1u);
  header->num_rows = 3;
  EXPECT_FALSE(ParseStep(*header, &plan).ok());
  header->num_rows = 2;
  header->num_copies = 1;
  EXPECT_FALSE(ParseStep(*header, &plan).ok());
  header->bytes += sizeof(shm::PlanCopy);
  EXPECT_TRUE(ParseStep(*header, &plan).ok());
  EXPECT_EQ(plan.copies.size(), 1u);
  EXPECT_EQ(static_cast<const void*>(plan.rows.data()), bytes + sizeof(shm::PlanHeader) + 8 + 8);
  header->num_rows = UINT32_MAX;
  EXPECT_FALSE(ParseStep(*header, &plan).ok());
}

}  // namespace
}  // namespace penstock::worker
