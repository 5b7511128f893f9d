#include "scheduler/kv_pages.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

namespace penstock::scheduler {
namespace {

constexpr uint32_t kPageSize = 4;

class KvPagesTest : public ::testing::Test {
 protected:
  KvPagesTest() { pages_.Reset(16, kPageSize); }

  // `count` ids from `first` on.
  Request Make(int count, int first = 0) {
    Request request;
    for (int i = 0; i < count; ++i) request.ids.push_back(first + i);
    request.prompt_len = static_cast<uint32_t>(count);
    return request;
  }
  KvPages::Prefix Find(Request* request) {
    pages_.BeginPlan();
    return pages_.FindPrefix(request);
  }
  // Admits it with what there is; step `step` computes the rest of its ids.
  KvPages::Prefix Admit(Request* request, uint64_t step) {
    const KvPages::Prefix prefix = Find(request);
    EXPECT_FALSE(prefix.being_computed);
    pages_.TakePrefix(request, prefix);
    const auto length = static_cast<uint32_t>(request->ids.size());
    while (request->pages.size() * kPageSize < length) pages_.TakePage(request);
    pages_.NoteRow(request, step, prefix.num_ids, length);
    return prefix;
  }
  void Release(Request* request, uint64_t last_step) {
    pages_.Release(request, static_cast<uint32_t>(request->ids.size()), last_step);
  }
  void Check(std::vector<Request*> holders) { pages_.CheckInvariants(holders); }

  KvPages pages_{KeySecret{1, 2}};
};

TEST_F(KvPagesTest, PagesAreFreeOnceTheLastStepThatNamesThemIsComplete) {
  Request request = Make(10);
  Admit(&request, 1);
  EXPECT_EQ(pages_.num_free(), 13u);
  Check({&request});
  Release(&request, 3);
  EXPECT_TRUE(request.pages.empty());
  EXPECT_EQ(pages_.num_quarantined(), 3u);
  for (uint64_t step : {1, 2}) {
    pages_.CompleteStep(step);
    Check({});
    EXPECT_EQ(pages_.num_free(), 13u);
  }
  pages_.CompleteStep(3);
  Check({});
  EXPECT_EQ(pages_.num_free(), 16u);
  EXPECT_EQ(pages_.num_quarantined(), 0u);
  EXPECT_EQ(pages_.num_cached(), 2u);
}

TEST_F(KvPagesTest, FullPagesAreSharedWhenTheirStepIsComplete) {
  Request first = Make(10), second = Make(9), longer = Make(12);
  Admit(&first, 1);
  pages_.CompleteStep(1);
  EXPECT_EQ(pages_.num_cached(), 2u);
  EXPECT_EQ(Admit(&second, 2).num_pages, 2u);
  EXPECT_EQ(second.num_shared, 2u);
  EXPECT_EQ(second.pages[1], first.pages[1]);
  EXPECT_NE(second.pages[2], first.pages[2]);
  EXPECT_EQ(second.cached_tokens, 8u);
  EXPECT_EQ(pages_.NumHeldByOthers(first), 2u);
  EXPECT_EQ(Find(&longer).num_ids, 8u);
  EXPECT_EQ(Find(&longer).num_unreferenced, 0u);
  Check({&first, &second});
  EXPECT_EQ(pages_.prefix_stats().queries, 19u);
  EXPECT_EQ(pages_.prefix_stats().hits, 8u);
}

TEST_F(KvPagesTest, APageThatIsBeingComputedIsWaitedForUntilItIsThere) {
  Request first = Make(12), second = Make(10), third = Make(3), other = Make(10, 50);
  Admit(&first, 2);
  EXPECT_TRUE(Find(&second).being_computed);
  EXPECT_FALSE(Find(&third).being_computed);  // it lacks no full page
  EXPECT_FALSE(Find(&other).being_computed);
  pages_.CompleteStep(1);
  EXPECT_TRUE(Find(&second).being_computed);
  pages_.CompleteStep(2);
  EXPECT_FALSE(Find(&second).being_computed);
  EXPECT_EQ(Find(&second).num_pages, 2u);
  Check({&first});
}

TEST_F(KvPagesTest, InChunksPageByPage) {
  Request first = Make(12), second = Make(12);
  pages_.TakePrefix(&first, Find(&first));
  for (int i = 0; i < 3; ++i) pages_.TakePage(&first);
  pages_.NoteRow(&first, 1, 0, 6);
  pages_.NoteRow(&first, 2, 6, 12);
  pages_.CompleteStep(1);
  Check({&first});
  EXPECT_TRUE(Find(&second).being_computed);
  Request divergent = Make(4);
  divergent.ids.insert(divergent.ids.end(), {90, 91, 92, 93, 94});
  EXPECT_FALSE(Find(&divergent).being_computed);
  EXPECT_EQ(Find(&divergent).num_pages, 1u);
  pages_.CompleteStep(2);
  EXPECT_FALSE(Find(&second).being_computed);
}

TEST_F(KvPagesTest, WhatIsAnnouncedIsWithdrawnByWhoeverLeaves) {
  Request first = Make(12), second = Make(12);
  Admit(&first, 2);
  EXPECT_TRUE(Find(&second).being_computed);
  pages_.Release(&first, 0, 2);
  Check({});
  EXPECT_FALSE(Find(&second).being_computed);
  // Two announce the same: it is being computed until both are gone.
  Request a = Make(12), b = Make(12);
  const KvPages::Prefix none = Find(&a);
  pages_.TakePrefix(&a, none);
  Find(&b);
  pages_.TakePrefix(&b, none);
  Check({&a, &b});
  pages_.Release(&a, 0, 2);
  EXPECT_TRUE(Find(&second).being_computed);
  pages_.Release(&b, 0, 2);
  EXPECT_FALSE(Find(&second).being_computed);
  pages_.CompleteStep(2);
  EXPECT_EQ(pages_.num_free(), 16u);
}

TEST_F(KvPagesTest, WhatNobodyCanGiveIsNotWaitedFor) {
  // Both compute the same; the second's pages stay its own, also those that only it has.
  Request first = Make(8), second = Make(12), third = Make(13);
  first.wants_prompt_logprobs = true;  // it announces nothing
  Admit(&first, 1);
  Admit(&second, 2);
  EXPECT_TRUE(Find(&third).being_computed);
  pages_.CompleteStep(1);
  EXPECT_TRUE(Find(&third).being_computed);
  pages_.CompleteStep(2);
  EXPECT_EQ(second.num_shared, 0u);
  EXPECT_FALSE(Find(&third).being_computed);
  EXPECT_EQ(Find(&third).num_pages, 2u);
  Check({&first, &second});
}

TEST_F(KvPagesTest, OfThoseWhoComeInOnePlanTheFirstIsWaitedFor) {
  Request a = Make(12), b = Make(12), shorter = Make(5), other = Make(12, 70);
  pages_.BeginPlan();
  EXPECT_FALSE(pages_.FindPrefix(&a).being_computed);
  EXPECT_TRUE(pages_.FindPrefix(&b).being_computed);
  EXPECT_TRUE(pages_.FindPrefix(&shorter).being_computed);
  EXPECT_FALSE(pages_.FindPrefix(&other).being_computed);
  EXPECT_FALSE(Find(&b).being_computed);  // `a` was not admitted after all
}

TEST_F(KvPagesTest, ATailIsOfferedAsLongAsItsOwnerRuns) {
  Request owner = Make(11), fork = Make(11), shorter = Make(10), longer = Make(12);
  Admit(&owner, 1);
  pages_.CompleteStep(1);
  const KvPages::Prefix prefix = Find(&fork);
  EXPECT_EQ(prefix.num_ids, 10u);
  EXPECT_EQ(prefix.num_pages, 2u);
  EXPECT_EQ(prefix.tail, &owner);
  EXPECT_EQ(Find(&shorter).tail, nullptr);
  EXPECT_EQ(Find(&longer).tail, nullptr);
  // Of another salt, or of another last id before its end.
  Request salted = Make(11), different = Make(11), last = Make(11);
  salted.cache_salt = "salt";
  different.ids[9] = 99;
  last.ids[10] = 99;
  EXPECT_EQ(Find(&salted).num_ids, 0u);
  EXPECT_EQ(Find(&different).num_ids, 8u);
  EXPECT_EQ(Find(&last).num_ids, 10u);
  Admit(&fork, 2);
  EXPECT_EQ(fork.cached_tokens, 10u);
  pages_.CompleteStep(2);
  Check({&owner, &fork});
  Release(&owner, 2);
  Check({&fork});
  EXPECT_EQ(Find(&last).tail, nullptr);
}

TEST_F(KvPagesTest, PromptsWithinAPageHaveTailsToo) {
  Request owner = Make(3), fork = Make(3), one = Make(1), other_one = Make(1);
  Admit(&owner, 1);
  Admit(&one, 1);
  EXPECT_EQ(Find(&fork).num_ids, 0u);  // not computed yet, and not waited for
  EXPECT_FALSE(Find(&fork).being_computed);
  pages_.CompleteStep(1);
  EXPECT_EQ(Find(&fork).num_ids, 2u);
  EXPECT_EQ(Find(&other_one).num_ids, 0u);
  EXPECT_EQ(Find(&other_one).tail, nullptr);
}

TEST_F(KvPagesTest, WhoSkipsItLeavesNothing) {
  Request skipping = Make(11), fork = Make(11);
  skipping.skip_prefix_cache = true;
  Admit(&skipping, 1);
  EXPECT_FALSE(Find(&fork).being_computed);
  pages_.CompleteStep(1);
  EXPECT_EQ(Find(&fork).num_ids, 0u);
  Check({&skipping});
  Release(&skipping, 1);
  EXPECT_EQ(pages_.num_cached(), 0u);
  EXPECT_EQ(pages_.num_free(), 16u);
  EXPECT_EQ(pages_.prefix_stats().queries, 0u);
  Admit(&fork, 2);
  pages_.CompleteStep(2);
  EXPECT_EQ(Find(&skipping).num_ids, 0u);
}

TEST_F(KvPagesTest, NothingIsLeftAfterAReset) {
  Request owner = Make(11), fork = Make(11);
  Admit(&owner, 1);
  pages_.CompleteStep(1);
  Admit(&fork, 2);
  Request running = Make(12, 30), waiting = Make(12, 30);
  Admit(&running, 3);
  for (Request* request : {&owner, &fork, &running}) KvPages::Forget(request);
  pages_.Reset(16, kPageSize);
  Check({});
  EXPECT_EQ(pages_.num_free(), 16u);
  EXPECT_FALSE(Find(&waiting).being_computed);
  Request again = Make(11);
  EXPECT_EQ(Find(&again).num_ids, 0u);
}

TEST_F(KvPagesTest, WithoutASecretNothingIsShared) {
  KvPages pages(std::nullopt);
  pages.Reset(16, kPageSize);
  Request first = Make(11), second = Make(11);
  pages.TakePrefix(&first, pages.FindPrefix(&first));
  for (int i = 0; i < 3; ++i) pages.TakePage(&first);
  pages.NoteRow(&first, 1, 0, 11);
  pages.BeginPlan();
  EXPECT_FALSE(pages.FindPrefix(&second).being_computed);
  pages.CompleteStep(1);
  EXPECT_EQ(pages.FindPrefix(&second).num_ids, 0u);
  Request* holder = &first;
  pages.CheckInvariants({&holder, 1});
}

}  // namespace
}  // namespace penstock::scheduler
