#include "scheduler/prefix_tree.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <vector>

namespace penstock::scheduler {
namespace {

using Pages = std::vector<uint32_t>;

// Keys of the chains of a string: a page a letter.
std::vector<PageKey> Keys(const std::string& letters) {
  std::vector<PageKey> keys;
  PageKey parent = RootKey({1, 2}, "");
  for (const char letter : letters) {
    const int32_t id = static_cast<unsigned char>(letter);
    parent = keys.emplace_back(NextKey({1, 2}, parent, {&id, 1}));
  }
  return keys;
}

class PrefixTreeTest : public ::testing::Test {
 protected:
  // A request that had pages of its own for all the letters leaves; returns what is free then.
  Pages Leave(const std::string& letters, const Pages& pages) {
    Pages freed;
    tree_.Release(pages, 0, Keys(letters), &freed);
    tree_.CheckInvariants();
    return freed;
  }
  uint32_t Length(const std::string& letters) { return tree_.Longest(Keys(letters)).num_pages; }
  Pages Take(const std::string& letters) {
    Pages pages;
    tree_.Acquire(Keys(letters), &pages);
    tree_.CheckInvariants();
    return pages;
  }
  void GiveUp(const Pages& pages) {
    Pages freed;
    tree_.Release(pages, static_cast<uint32_t>(pages.size()), {}, &freed);
    EXPECT_TRUE(freed.empty());
    tree_.CheckInvariants();
  }
  PrefixTree tree_{10};
};

TEST_F(PrefixTreeTest, FindsTheLongestChain) {
  EXPECT_EQ(Leave("abc", {3, 1, 4}), Pages());
  EXPECT_EQ(Leave("abd", {5, 9, 2}), (Pages{5, 9}));  // there already
  EXPECT_EQ(Leave("b", {6}), Pages());
  EXPECT_EQ(tree_.num_pages(), 5u);
  EXPECT_EQ(Length("abcx"), 3u);
  EXPECT_EQ(Length("abx"), 2u);
  EXPECT_EQ(Length("bc"), 1u);  // c follows ab, not b
  EXPECT_EQ(Length("x"), 0u);
  EXPECT_EQ(Length(""), 0u);
  EXPECT_EQ(Take("abd"), (Pages{3, 1, 2}));
}

TEST_F(PrefixTreeTest, WhatHasNoKeyIsFreed) { EXPECT_EQ(Leave("ab", {1, 2, 3, 4}), (Pages{3, 4})); }

TEST_F(PrefixTreeTest, AKeyIsPutInOnce) {
  const auto keys = Keys("ab");
  EXPECT_TRUE(tree_.Insert(keys[0], PrefixTree::kNone, 7));
  EXPECT_FALSE(tree_.Insert(keys[0], PrefixTree::kNone, 8));
  EXPECT_TRUE(tree_.Insert(keys[1], 7, 8));
  EXPECT_EQ(tree_.num_unreferenced(), 0u);
  GiveUp({7, 8});
  EXPECT_EQ(tree_.num_unreferenced(), 2u);
}

TEST_F(PrefixTreeTest, EvictsTheLeastRecentlyUsedFromTheLeaves) {
  Leave("abc", {0, 1, 2});
  Leave("xy", {3, 4});
  GiveUp(Take("ab"));  // used now; c was not
  EXPECT_EQ(tree_.Evict(), 2u);
  EXPECT_EQ(tree_.Evict(), 4u);
  EXPECT_EQ(tree_.Evict(), 3u);
  EXPECT_EQ(Length("ab"), 2u);
  EXPECT_EQ(tree_.Evict(), 1u);
  EXPECT_EQ(tree_.Evict(), 0u);
  EXPECT_EQ(tree_.num_pages(), 0u);
  tree_.CheckInvariants();
}

TEST_F(PrefixTreeTest, ALateCopyMakesItsAncestorsRecentToo) {
  Leave("a", {0});
  Leave("x", {1});
  EXPECT_EQ(Leave("ab", {2, 3}), (Pages{2}));
  EXPECT_EQ(tree_.Evict(), 1u);
  EXPECT_EQ(tree_.Evict(), 3u);
  EXPECT_EQ(tree_.Evict(), 0u);
}

TEST_F(PrefixTreeTest, WhatIsReferredToStays) {
  Leave("abc", {0, 1, 2});
  const Pages held = Take("ab");
  const PrefixTree::Match match = tree_.Longest(Keys("abc"));
  EXPECT_EQ(match.num_pages, 3u);
  EXPECT_EQ(match.num_unreferenced, 1u);
  EXPECT_EQ(tree_.num_unreferenced(), 1u);
  EXPECT_EQ(tree_.Evict(), 2u);
  EXPECT_EQ(tree_.num_unreferenced(), 0u);
  EXPECT_EQ(tree_.NumHeldByOthers(held), 0u);
  const Pages also = Take("a");
  EXPECT_EQ(tree_.NumHeldByOthers(held), 1u);
  GiveUp(held);
  EXPECT_EQ(tree_.num_unreferenced(), 1u);
  GiveUp(also);
}

TEST_F(PrefixTreeTest, MisuseEndsTheProcess) {
  EXPECT_DEATH(tree_.Evict(), "");
  EXPECT_DEATH(Take("a"), "");
  Leave("a", {0});
  EXPECT_DEATH(tree_.Insert(Keys("ab")[1], 0, 1), "");  // nobody refers to a
  Take("a");
  EXPECT_DEATH(tree_.Insert(Keys("ab")[1], 0, 0), "");  // the page is there
}

// Against the same thing done naively: a map from strings.
TEST(PrefixTreeRandomTest, IsWhatAMapOfChainsIs) {
  const auto seed = std::random_device()();
  std::printf("seed %u\n", seed);
  std::mt19937 random(seed);
  struct Entry {
    uint32_t page;
    int references;
    uint64_t last_use;  // the later of two of one time is the longer
  };
  struct Holder {
    std::string letters;
    Pages pages;
    uint32_t num_shared;
  };
  constexpr uint32_t kNumPages = 60;
  PrefixTree tree(kNumPages);
  std::map<std::string, Entry> naive;
  std::vector<Holder> holders;
  Pages free_pages;
  for (uint32_t page = 0; page < kNumPages; ++page) free_pages.push_back(page);
  uint64_t num_evicted = 0, num_hits = 0, num_freed = 0;

  auto evict = [&] {  // false: everything is held
    auto oldest = naive.end();
    uint32_t num_unreferenced = 0;
    for (auto it = naive.begin(); it != naive.end(); ++it) {
      if (it->second.references > 0) continue;
      ++num_unreferenced;
      if (oldest == naive.end() || it->second.last_use < oldest->second.last_use ||
          (it->second.last_use == oldest->second.last_use &&
           it->first.size() > oldest->first.size())) {
        oldest = it;
      }
    }
    EXPECT_EQ(tree.num_unreferenced(), num_unreferenced);
    if (oldest == naive.end()) return false;
    EXPECT_EQ(tree.Evict(), oldest->second.page);
    free_pages.push_back(oldest->second.page);
    naive.erase(oldest);
    ++num_evicted;
    return true;
  };
  auto arrive = [&] {
    Holder holder;
    for (size_t i = 1 + random() % 8; i > 0; --i) {
      holder.letters.push_back("ab"[random() % 8 == 0]);
    }
    const auto keys = Keys(holder.letters);
    const PrefixTree::Match match = tree.Longest(keys);
    uint32_t expected = 0, unreferenced = 0;
    while (expected < keys.size() && naive.contains(holder.letters.substr(0, expected + 1))) {
      Entry& entry = naive[holder.letters.substr(0, ++expected)];
      unreferenced += entry.references++ == 0;
    }
    ASSERT_EQ(match.num_pages, expected);
    ASSERT_EQ(match.num_unreferenced, unreferenced);
    num_hits += expected;
    holder.num_shared = expected;
    tree.Acquire(std::span(keys).first(expected), &holder.pages);
    while (holder.pages.size() < keys.size() && (!free_pages.empty() || evict())) {
      holder.pages.push_back(free_pages.back());
      free_pages.pop_back();
    }
    holder.letters.resize(holder.pages.size());
    holders.push_back(holder);
  };
  auto share = [&](Holder& holder) {  // one page more
    const uint32_t i = holder.num_shared;
    if (i == holder.pages.size()) return;
    const std::string letters = holder.letters.substr(0, i + 1);
    const uint32_t parent = i == 0 ? PrefixTree::kNone : holder.pages[i - 1];
    const bool is_new = naive.try_emplace(letters, Entry{holder.pages[i], 1, 0}).second;
    ASSERT_EQ(tree.Insert(Keys(letters).back(), parent, holder.pages[i]), is_new);
    holder.num_shared += is_new;
  };
  auto leave = [&](const Holder& holder, uint64_t now) {
    const size_t num_full =
        holder.num_shared + random() % (holder.pages.size() - holder.num_shared + 1);
    Pages freed, expected;
    const auto keys = Keys(holder.letters.substr(0, num_full));
    tree.Release(holder.pages, holder.num_shared, std::span(keys).subspan(holder.num_shared),
                 &freed);
    for (size_t i = 0; i < holder.pages.size(); ++i) {
      const std::string letters = holder.letters.substr(0, i + 1);
      if (i >= num_full || (i >= holder.num_shared &&
                            !naive.try_emplace(letters, Entry{holder.pages[i], 0, 0}).second)) {
        expected.push_back(holder.pages[i]);
      }
      if (i >= num_full) continue;
      Entry& entry = naive[letters];
      entry.references -= i < holder.num_shared;
      entry.last_use = now;
    }
    ASSERT_EQ(freed, expected);
    free_pages.insert(free_pages.end(), freed.begin(), freed.end());
    num_freed += freed.size();
  };

  for (uint64_t step = 1; step <= 100'000; ++step) {
    const size_t victim = holders.empty() ? 0 : random() % holders.size();
    if (holders.size() < 3 || random() % 20 > holders.size()) {
      arrive();
    } else if (random() % 2 == 0) {
      share(holders[victim]);
    } else {
      leave(holders[victim], step);
      holders.erase(holders.begin() + static_cast<ptrdiff_t>(victim));
    }
    if (HasFatalFailure()) return;
    if (step % 16 == 0) tree.CheckInvariants();
    ASSERT_EQ(tree.num_pages(), naive.size());
  }
  std::printf("evicted %lu hits %lu freed %lu\n", num_evicted, num_hits, num_freed);
  EXPECT_GT(std::min({num_evicted, num_hits, num_freed}), 1000u);
}

}  // namespace
}  // namespace penstock::scheduler
