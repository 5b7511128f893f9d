// What requests that begin alike compute, to the id: prefixes that are just being computed, forks
// that copy the page of their last id, and who has no part in it. Batch over a simulated rank that
// checks what stands in every page.
#include <gtest/gtest.h>

#include <deque>
#include <memory>
#include <vector>

#include "common/log.h"
#include "scheduler/batch.h"
#include "tests/unit/scheduler/shadow_rank.h"

namespace penstock::scheduler {
namespace {

constexpr uint32_t kPageSize = 16;

std::vector<int32_t> Ids(int count, int seed) {
  std::vector<int32_t> ids;
  for (int i = 0; i < count; ++i) ids.push_back((seed * 131 + i * 7) % 900 + 50);
  return ids;
}

std::vector<int32_t> operator+(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// The parameter: unfinished steps, 1 or 2.
class SharingTest : public ::testing::TestWithParam<int> {
 protected:
  struct Options {
    int max_tokens = 8;
    bool prompt_logprobs = false;
    bool skip = false;
  };

  void Start(uint32_t max_tokens, uint32_t num_pages = 400) {
    max_tokens_ = max_tokens;
    model_ = {num_pages, kPageSize, 1024, 1000, max_tokens};
    rank_ = std::make_unique<ShadowRank>(slots_, arena_, model_);
    rank_->Reset();
    batch_.Reset(model_, max_tokens);
  }
  Request* Add(const std::vector<int32_t>& ids, const Options& options) {
    auto request = std::make_unique<Request>();
    request->id = requests_.size();
    request->ids = ids;
    request->prompt_len = static_cast<uint32_t>(ids.size());
    request->wants_prompt_logprobs = options.prompt_logprobs;
    request->skip_prefix_cache = options.skip;
    request->sampling.set_seed(request->id % 16);  // whose salt is none
    request->sampling.set_max_tokens(options.max_tokens);
    request->sampling.set_min_tokens(options.max_tokens);
    request->sampling.add_stop_ids(7);
    request->sampling.add_stop_ids(8);
    batch_.Enqueue(request.get());
    requests_.push_back(std::move(request));
    return requests_.back().get();
  }
  Request* Add(const std::vector<int32_t>& ids) { return Add(ids, {}); }

  // Plans a step, unless there is nothing to do; completes the one before it, or it.
  bool Step() {
    PlanRecord record;
    const bool any = batch_.Compose(next_step_, &record);
    batch_.CheckInvariants();
    if (any) {
      in_flight_.push_back({next_step_, rank_->Run(next_step_, record, max_tokens_)});
      ++next_step_;
    }
    if (in_flight_.empty() || (any && in_flight_.size() < static_cast<size_t>(GetParam()))) {
      return any;
    }
    Complete();
    return true;
  }
  void Complete() {
    for (const Result& result : in_flight_.front().results) {
      Request* request = batch_.Find(result.slot, result.generation);
      if (request == nullptr) continue;
      request->ids.push_back(result.id);
      if (EndAfterLastId(*request, model_) != wire::END_NONE) batch_.Remove(request);
    }
    batch_.CompleteStep(in_flight_.front().step);
    rank_->CompleteStep(in_flight_.front().step);
    in_flight_.pop_front();
    batch_.CheckInvariants();
  }
  void LoseRanks() {
    std::vector<Request*> failed;
    batch_.LoseRanks(&failed);
    EXPECT_TRUE(failed.empty());
    in_flight_.clear();
    next_step_ = 1;
    rank_->Reset();
    batch_.Reset(model_, max_tokens_);
  }
  void RunAll() {
    while (Step()) {
    }
    EXPECT_TRUE(batch_.AllFree() && batch_.num_waiting() == 0);
  }
  // Ids of prompts that were computed, if everybody came to the end that he asked for.
  uint64_t PromptIdsComputed() const {
    uint64_t computed = rank_->num_computed;
    for (const auto& request : requests_) computed -= request->num_outputs() - 1;
    return computed;
  }
  std::vector<uint32_t> Cached() const {
    std::vector<uint32_t> cached;
    for (const auto& request : requests_) cached.push_back(request->cached_tokens);
    return cached;
  }

  struct InFlight {
    uint64_t step;
    std::vector<Result> results;
  };
  std::vector<shm::RequestSlot> slots_ = std::vector<shm::RequestSlot>(16);
  std::vector<std::byte> arena_ = std::vector<std::byte>(1 << 20);
  ModelFacts model_;
  uint32_t max_tokens_ = 0;
  Batch batch_{slots_, arena_, KeySecret{1, 2}};
  std::unique_ptr<ShadowRank> rank_;
  std::vector<std::unique_ptr<Request>> requests_;
  std::deque<InFlight> in_flight_;
  uint64_t next_step_ = 1;
};

using Counts = std::vector<uint32_t>;

TEST_P(SharingTest, ForksOfOnePromptComputeItOnce) {
  Start(256);
  for (int i = 0; i < 4; ++i) Add(Ids(100, 1));
  RunAll();
  EXPECT_EQ(PromptIdsComputed(), 100 + 3 * 1u);
  EXPECT_EQ(Cached(), (Counts{0, 99, 99, 99}));
  EXPECT_EQ(rank_->num_copies, 3u);
  EXPECT_EQ(batch_.prefix_stats().queries, 400u);
  EXPECT_EQ(batch_.prefix_stats().hits, 3 * 99u);
}

TEST_P(SharingTest, AlsoOfAPromptOfWholePages) {
  Start(256);
  for (int i = 0; i < 4; ++i) Add(Ids(96, 1));
  RunAll();
  EXPECT_EQ(PromptIdsComputed(), 96 + 3 * 1u);
  EXPECT_EQ(Cached(), (Counts{0, 95, 95, 95}));
  EXPECT_EQ(rank_->num_copies, 3u);
}

TEST_P(SharingTest, NothingIsCopiedForTheFirstIdOfAPage) {
  Start(256);
  for (int i = 0; i < 4; ++i) Add(Ids(97, 1));
  RunAll();
  EXPECT_EQ(PromptIdsComputed(), 97 + 3 * 1u);
  EXPECT_EQ(Cached(), (Counts{0, 96, 96, 96}));
  EXPECT_EQ(rank_->num_copies, 0u);
}

TEST_P(SharingTest, ForksOfAPromptInChunks) {
  Start(40);  // 40, 40, 20: the last chunk ends pages 5 and 6
  for (int i = 0; i < 4; ++i) Add(Ids(100, 1));
  RunAll();
  EXPECT_EQ(PromptIdsComputed(), 100 + 3 * 1u);
  EXPECT_EQ(rank_->num_copies, 3u);
}

TEST_P(SharingTest, ALateForkCopiesFromWhoStillRuns) {
  Start(256);
  Add(Ids(100, 1), {.max_tokens = 50});
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(Step());  // it has written to that page, and the next
  Request* fork = Add(Ids(100, 1));
  Add(Ids(99, 1) + Ids(1, 2));  // what it does not compute, is the same
  RunAll();
  EXPECT_EQ(Cached(), (Counts{0, 99, 99}));
  EXPECT_EQ(rank_->num_copies, 2u);
  Add(Ids(100, 1));  // nobody runs any more
  RunAll();
  EXPECT_EQ(Cached(), (Counts{0, 99, 99, 96}));
  EXPECT_EQ(fork->num_outputs(), 8u);
}

TEST_P(SharingTest, TheOwnerMayLeaveBeforeTheCopyIsMade) {
  Start(256, 20);
  batch_.UseAdmission(Admission::kWatermark, std::make_unique<WindowEstimate>(), 0);
  Request* owner = Add(Ids(100, 1), {.max_tokens = 2});
  while (owner->num_outputs() == 0) ASSERT_TRUE(Step());
  Add(Ids(100, 1));
  ASSERT_TRUE(Step());
  if (GetParam() == 2) {
    EXPECT_EQ(owner->num_outputs(), 2u);
  }
  Add(Ids(120, 2));
  ASSERT_TRUE(Step());  // (the rank checks that no page is used anew that a step still copies)
  RunAll();
  EXPECT_EQ(Cached(), (Counts{0, 99, 0}));
}

TEST_P(SharingTest, NobodyWaitsForATail) {
  Start(256);
  for (int i = 0; i < 3; ++i) Add(Ids(10, 1));
  ASSERT_TRUE(Step());
  EXPECT_EQ(batch_.num_running(), 3u);
  RunAll();
  EXPECT_EQ(PromptIdsComputed(), 30u);
}

TEST_P(SharingTest, ACommonBeginningIsComputedOnceThoughAllComeAtOnce) {
  Start(256);
  for (int i = 0; i < 4; ++i) Add(Ids(80, 1) + Ids(20, 10 + i));
  Request* other = Add(Ids(50, 2));
  ASSERT_TRUE(Step());
  // The other passes those who wait.
  EXPECT_EQ(batch_.num_running(), 2u);
  EXPECT_EQ(other->state, RequestState::kRunning);
  RunAll();
  EXPECT_EQ(PromptIdsComputed(), 100 + 3 * 20 + 50u);
  EXPECT_EQ(Cached(), (Counts{0, 80, 80, 80, 0}));
}

TEST_P(SharingTest, TheyWaitForTheNextPageOnly) {
  Start(32);  // the first prompt takes 10 steps, the common page is there after one
  Add(Ids(16, 1) + Ids(304, 2), {.max_tokens = 2});
  Request* second = Add(Ids(16, 1) + Ids(10, 3), {.max_tokens = 2});
  for (int i = 0; i < 11; ++i) ASSERT_TRUE(Step());
  EXPECT_NE(second->state, RequestState::kWaiting);
  RunAll();
  EXPECT_EQ(Cached(), (Counts{0, 16}));
}

TEST_P(SharingTest, ChainsOfThoseWhoWait) {
  Start(256);
  Add(Ids(32, 1) + Ids(40, 2));
  Add(Ids(32, 1) + Ids(64, 3));
  Add(Ids(32, 1) + Ids(64, 3) + Ids(40, 4));
  Add(Ids(32, 1) + Ids(64, 3) + Ids(40, 4) + Ids(1, 5));
  RunAll();
  EXPECT_EQ(Cached(), (Counts{0, 32, 96, 128}));
  EXPECT_EQ(PromptIdsComputed(), 72 + 64 + 40 + 9u);
}

TEST_P(SharingTest, WhoeverWaitsGoesOnWhenTheComputingRequestIsGone) {
  Start(16);
  for (const bool late : {false, true}) {
    const std::vector<int32_t> ids = Ids(300, late ? 1 : 2);
    Request* first = Add(ids);
    Request* second = Add(ids, {.max_tokens = 1});
    for (int i = 0; i < (late ? 4 : 2); ++i) ASSERT_TRUE(Step());
    EXPECT_EQ(second->state, RequestState::kWaiting);
    batch_.Remove(first);
    RunAll();
    EXPECT_EQ(second->num_outputs(), 1u);
  }
}

TEST_P(SharingTest, TheyGoOnAfterALossOfTheRanks) {
  Start(64);
  for (int i = 0; i < 4; ++i) Add(Ids(100, 1));
  ASSERT_TRUE(Step());
  LoseRanks();
  rank_->num_computed = rank_->num_copies = 0;
  RunAll();
  EXPECT_EQ(PromptIdsComputed(), 100 + 3 * 1u);
  EXPECT_EQ(rank_->num_copies, 3u);
}

TEST_P(SharingTest, APreemptedRequestIsWaitedForNoLonger) {
  Start(32, 32);
  batch_.UseAdmission(Admission::kWatermark, std::make_unique<WindowEstimate>(), 0);
  // The old one grows into all pages, so that the young one is preempted in its prompt, for whose
  // pages a third one waits.
  Request* old = Add(Ids(44, 1), {.max_tokens = 400});
  while (old->num_outputs() == 0) ASSERT_TRUE(Step());
  Request* young = Add(Ids(460, 2), {.max_tokens = 2});
  Request* third = Add(Ids(460, 2), {.max_tokens = 2});
  bool waited = false;
  while (young->num_preemptions == 0 && Step()) {
    waited |= young->state == RequestState::kRunning && third->state == RequestState::kWaiting;
  }
  EXPECT_TRUE(waited);
  EXPECT_GE(young->num_preemptions, 1u);
  RunAll();
  for (const auto& request : requests_) {
    EXPECT_EQ(static_cast<int>(request->num_outputs()), request->sampling.max_tokens());
  }
}

TEST_P(SharingTest, WhoSkipsTheCacheNeitherTakesNorGives) {
  Start(256);
  Add(Ids(100, 1));
  RunAll();
  const uint32_t cached = batch_.num_cached_pages();
  Add(Ids(100, 1), {.skip = true});
  Add(Ids(100, 2), {.skip = true});
  RunAll();
  EXPECT_EQ(batch_.num_cached_pages(), cached);
  Request* skipping = Add(Ids(100, 3), {.skip = true});
  Request* other = Add(Ids(100, 3));
  ASSERT_TRUE(Step());  // nor is it waited for
  EXPECT_EQ(skipping->state, RequestState::kRunning);
  EXPECT_EQ(other->state, RequestState::kRunning);
  while (other->num_outputs() < 4) ASSERT_TRUE(Step());
  Add(Ids(100, 3), {.skip = true});
  RunAll();
  EXPECT_EQ(Cached(), (Counts{0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(PromptIdsComputed(), 600u);
  EXPECT_EQ(batch_.prefix_stats().queries, 200u);
}

TEST_P(SharingTest, PromptLogprobsAreComputedAtOnceAndByNobodyWaitedFor) {
  Start(256);
  Request* first = Add(Ids(100, 1));
  Request* logprobs = Add(Ids(100, 1), {.prompt_logprobs = true});
  ASSERT_TRUE(Step());
  EXPECT_EQ(first->state, RequestState::kRunning);
  EXPECT_EQ(logprobs->state, RequestState::kRunning);
  RunAll();
  Add(Ids(100, 2), {.prompt_logprobs = true});
  Request* behind = Add(Ids(100, 2));
  ASSERT_TRUE(Step());
  EXPECT_EQ(behind->state, RequestState::kRunning);
  RunAll();
  Add(Ids(100, 2));  // it has given
  RunAll();
  EXPECT_EQ(Cached(), (Counts{0, 0, 0, 0, 96}));
}

TEST_P(SharingTest, ThoseBehindManyThatWaitAreNotLookedAt) {
  Start(2048);
  for (int i = 0; i < 70; ++i) Add(Ids(100, 1), {.max_tokens = 2});
  Request* behind = Add(Ids(20, 2), {.max_tokens = 2});
  ASSERT_TRUE(Step());
  EXPECT_EQ(batch_.num_running(), 1u);
  EXPECT_EQ(behind->state, RequestState::kWaiting);
  RunAll();
  EXPECT_EQ(behind->num_outputs(), 2u);
}

INSTANTIATE_TEST_SUITE_P(Depths, SharingTest, ::testing::Values(1, 2));

}  // namespace
}  // namespace penstock::scheduler
