#include "scheduler/prefix_tree.h"

#include <algorithm>
#include <bit>

#include "common/log.h"

namespace penstock::scheduler {
namespace {

// The first i of 0 .. count for which holds(i) is false, if it is true up to some place.
template <typename Predicate>
uint32_t FirstWithout(uint32_t count, Predicate holds) {
  uint32_t begin = 0;
  while (begin < count) {
    const uint32_t middle = begin + (count - begin) / 2;
    if (holds(middle)) {
      begin = middle + 1;
    } else {
      count = middle;
    }
  }
  return begin;
}

}  // namespace

PrefixTree::PrefixTree(uint32_t max_pages)
    : nodes_(max_pages + 1), buckets_(std::bit_ceil(std::max(max_pages, 1u)), kNone) {
  nodes_[max_pages].newer = nodes_[max_pages].older = max_pages;
}

uint32_t PrefixTree::Find(const PageKey& key) const {
  uint32_t page = buckets_[key.low & (buckets_.size() - 1)];
  while (page != kNone && nodes_[page].key != key) page = nodes_[page].next_in_bucket;
  return page;
}

PrefixTree::Match PrefixTree::Longest(std::span<const PageKey> keys) const {
  Match match;
  match.num_pages = FirstWithout(static_cast<uint32_t>(keys.size()),
                                 [&](uint32_t i) { return Find(keys[i]) != kNone; });
  match.num_unreferenced = match.num_pages - FirstWithout(match.num_pages, [&](uint32_t i) {
                             return nodes_[Find(keys[i])].references > 0;
                           });
  return match;
}

void PrefixTree::AddReference(uint32_t page) {
  Node& node = nodes_[page];
  if (node.references++ > 0) return;
  nodes_[node.older].newer = node.newer;
  nodes_[node.newer].older = node.older;
  --num_unreferenced_;
}

void PrefixTree::DropReference(uint32_t page) {
  Node& node = nodes_[page];
  CHECK(node.references > 0);
  if (--node.references > 0) return;
  const auto head = static_cast<uint32_t>(nodes_.size() - 1);
  node.newer = head;
  node.older = nodes_[head].older;
  nodes_[node.older].newer = page;
  nodes_[head].older = page;
  ++num_unreferenced_;
}

void PrefixTree::Acquire(std::span<const PageKey> keys, std::vector<uint32_t>* pages) {
  for (const PageKey& key : keys) {
    const uint32_t page = Find(key);
    CHECK(page != kNone);
    AddReference(page);
    pages->push_back(page);
  }
}

bool PrefixTree::Insert(const PageKey& key, uint32_t parent, uint32_t page) {
  if (Find(key) != kNone) return false;
  Node& node = nodes_[page];
  CHECK(!Contains(page));
  if (parent != kNone) {
    CHECK(Contains(parent) && nodes_[parent].references > 0);
    ++nodes_[parent].num_children;
  }
  node.key = key;
  node.parent = parent;
  node.references = 1;
  node.next_in_bucket = Bucket(key);
  Bucket(key) = page;
  ++num_pages_;
  return true;
}

void PrefixTree::Release(std::span<const uint32_t> pages, uint32_t num_shared,
                         std::span<const PageKey> keys, std::vector<uint32_t>* freed) {
  chain_.assign(pages.begin(), pages.begin() + num_shared);
  for (const PageKey& key : keys) {
    const uint32_t page = pages[chain_.size()];
    if (Insert(key, chain_.empty() ? kNone : chain_.back(), page)) {
      chain_.push_back(page);
    } else {
      freed->push_back(page);
      chain_.push_back(Find(key));
      AddReference(chain_.back());
    }
  }
  freed->insert(freed->end(), pages.begin() + chain_.size(), pages.end());
  // From the end, so that descendants come before their ancestors in the list; those of the chain
  // that nobody referred to have been used now as well.
  for (size_t i = chain_.size(); i > 0; --i) DropReference(chain_[i - 1]);
}

uint32_t PrefixTree::Evict() {
  CHECK(num_unreferenced_ > 0);
  const uint32_t page = nodes_.back().newer;
  Node& node = nodes_[page];
  CHECK(node.num_children == 0);
  AddReference(page);  // out of the list
  if (node.parent != kNone) --nodes_[node.parent].num_children;
  uint32_t* link = &Bucket(node.key);
  while (*link != page) link = &nodes_[*link].next_in_bucket;
  *link = node.next_in_bucket;
  node = Node();
  --num_pages_;
  return page;
}

uint32_t PrefixTree::NumHeldByOthers(std::span<const uint32_t> chain) const {
  return FirstWithout(static_cast<uint32_t>(chain.size()),
                      [&](uint32_t i) { return nodes_[chain[i]].references > 1; });
}

void PrefixTree::CheckInvariants() const {
  const auto head = static_cast<uint32_t>(nodes_.size() - 1);
  std::vector<uint32_t> num_children(head);
  std::vector<bool> listed(head);
  uint32_t num_pages = 0, num_listed = 0;
  for (uint32_t page = nodes_[head].newer; page != head; page = nodes_[page].newer) {
    CHECK(Contains(page) && nodes_[page].references == 0 && !listed[page]);
    CHECK(nodes_[nodes_[page].newer].older == page);
    const uint32_t parent = nodes_[page].parent;
    CHECK(parent == kNone || !listed[parent]);  // descendants come first
    listed[page] = true;
    ++num_listed;
  }
  for (uint32_t page = 0; page < head; ++page) {
    const Node& node = nodes_[page];
    if (!Contains(page)) {
      CHECK(node.references == 0);
      continue;
    }
    ++num_pages;
    CHECK(Find(node.key) == page);
    CHECK(listed[page] == (node.references == 0));
    if (node.parent == kNone) continue;
    CHECK(Contains(node.parent) && nodes_[node.parent].references >= node.references);
    ++num_children[node.parent];
  }
  for (uint32_t page = 0; page < head; ++page) {
    CHECK(nodes_[page].num_children == num_children[page]);
  }
  CHECK(num_pages == num_pages_ && num_listed == num_unreferenced_);
}

}  // namespace penstock::scheduler
