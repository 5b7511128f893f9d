// Forks of one prompt, on real ranks: they compute its last id alone, in copies of the page that it
// stands in.
#include <gtest/gtest.h>
#include <unistd.h>

#include "common/status.h"
#include "tests/unit/worker/plan_driver.h"
#include "tests/unit/worker/tiny_model.h"
#include "tests/unit/worker/worker_process.h"

namespace penstock::worker {
namespace {

constexpr int kForks = 3, kPrompt = 9, kOutputs = 22;

DriverRequest Request(int length, uint64_t seed) {
  DriverRequest request;
  for (int i = 0; i < length; ++i) {
    request.ids.push_back(static_cast<int32_t>((seed * 31 + i * 17 + 5) % 96));
  }
  request.sampling = GreedySampling();
  request.sampling.temperature = 0.8f;
  request.sampling.seed = seed;
  return request;
}

class PageCopyTest : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    shm::Geometry geometry;
    geometry.num_ranks = static_cast<uint32_t>(GetParam());
    geometry.num_slots = 8;
    if (GetParam() > 1) geometry.collective_bytes = 64 << 10;
    driver_ = PlanDriver::Create(engine_, geometry).value();
    for (int rank = 0; rank < GetParam(); ++rank) {
      workers_.push_back(WorkerProcess::Start(engine_, rank,
                                              {"--model=" + model_.WriteFile(), "--dtype=float32",
                                               "--threads=1", "--num-kv-pages=40"}));
    }
    ASSERT_TRUE(driver_->WaitReady(120'000).ok());
    ASSERT_TRUE(driver_->Reset().ok());
  }
  // A step that must go well; the ids it yields.
  std::vector<int32_t> Step(const std::vector<shm::PlanRow>& rows) {
    const auto result = driver_->Step(rows);
    EXPECT_TRUE(result.ok()) << result.status();
    std::vector<int32_t> ids;
    if (result.ok()) {
      for (const StepResult::Row& row : result->rows) ids.push_back(row.row.token_id);
    }
    return ids;
  }

  const std::string engine_ = fmt::format("page-copy-test-{}", getpid());
  TinyModel model_{{.heads = 4, .kv_heads = 2}};
  std::unique_ptr<PlanDriver> driver_;
  std::vector<WorkerProcess> workers_;
};

TEST_P(PageCopyTest, ACopyHoldsWhatItsSourceHeld) {
  const DriverRequest request = Request(kPrompt, 5);
  const uint32_t owner = driver_->Add(request, 40);
  std::vector<int32_t> want = Step({{owner, 0, kPrompt, shm::kRowSample}});
  // What will be the forks' pages held something else.
  const uint32_t stranger = driver_->Add(Request(30, 6), 3 * 40);
  want.push_back(Step({{owner, kPrompt, 1, shm::kRowSample}, {stranger, 0, 30, 0}}).at(0));
  driver_->Release(stranger);
  Step({});
  // The owner writes on while it is copied.
  std::vector<uint32_t> slots = {owner};
  std::vector<shm::PlanRow> rows = {{owner, kPrompt + 1, 1, shm::kRowSample}};
  for (int i = 0; i < kForks; ++i) {
    slots.push_back(driver_->Add(request, 40));
    driver_->CopyPage(owner, slots.back(), 0);
    rows.push_back({slots.back(), kPrompt - 1, 1, shm::kRowSample});
  }
  const std::vector<int32_t> forked = Step(rows);
  ASSERT_EQ(forked.size(), rows.size());
  want.push_back(forked[0]);
  std::vector<std::vector<int32_t>> outputs(kForks);
  for (int i = 0; i < kForks; ++i) outputs[i].push_back(forked[i + 1]);
  // From there on each is by itself; the owner is two ids ahead.
  for (uint32_t i = 1; i < kOutputs; ++i) {
    rows = {{owner, kPrompt + 1 + i, 1, shm::kRowSample}};
    for (int fork = 0; fork < kForks; ++fork) {
      rows.push_back({slots[fork + 1], kPrompt - 1 + i, 1, shm::kRowSample});
    }
    const std::vector<int32_t> ids = Step(rows);
    ASSERT_EQ(ids.size(), rows.size());
    want.push_back(ids[0]);
    for (int fork = 0; fork < kForks; ++fork) outputs[fork].push_back(ids[fork + 1]);
  }
  for (const uint32_t slot : slots) driver_->Release(slot);
  Step({});
  const auto alone = Generate(driver_.get(), {request}, kOutputs + 2, 64);
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_EQ(want, (*alone)[0]);
  want.resize(kOutputs);
  for (const std::vector<int32_t>& ids : outputs) EXPECT_EQ(ids, want);
}

INSTANTIATE_TEST_SUITE_P(Ranks, PageCopyTest, testing::Values(1, 2));

}  // namespace
}  // namespace penstock::worker
