// Full KV pages whose contents are computed, as a radix tree: a node is a page and the ids in it,
// its ancestors are the pages before it, its name (page_key.h) tells all ids up to its end.
// Requests with a common prefix take the same pages; nobody writes to a page of the tree.
//
// References are to chains: who refers to a page refers to all its ancestors. So a page has at most
// as many references as its parent, and one without any has no descendant with one: all of those
// can be evicted, and count as free. They stand in one list in order of their last use, descendants
// before their ancestors, so that its front is always a leaf.
//
// A chain is found from its last page's key alone, and pages are evicted from the leaves; so the
// longest chain of n keys takes O(log n) look-ups. Everything else is O(1) a page. Memory is taken
// once, 44 to 48 bytes a page. Pure; not thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "scheduler/page_key.h"

namespace penstock::scheduler {

class PrefixTree {
 public:
  static constexpr uint32_t kNone = UINT32_MAX;

  // For pages 0 .. max_pages - 1; none is in the tree yet.
  explicit PrefixTree(uint32_t max_pages);

  uint32_t num_pages() const { return num_pages_; }                // in the tree
  uint32_t num_unreferenced() const { return num_unreferenced_; }  // of these
  bool Contains(uint32_t page) const { return nodes_[page].parent != kAbsent; }
  uint32_t num_references(uint32_t page) const { return nodes_[page].references; }

  struct Match {
    uint32_t num_pages = 0;         // the first so many keys are in the tree
    uint32_t num_unreferenced = 0;  // of these pages
  };
  // `keys` are a chain's, from its first page on.
  Match Longest(std::span<const PageKey> keys) const;

  // Adds a reference to each page of the chain of `keys`, all of which are in the tree, and appends
  // the pages to *pages.
  void Acquire(std::span<const PageKey> keys, std::vector<uint32_t>* pages);
  // Puts a page in behind `parent` (kNone: it begins a chain), to which the caller refers. The
  // caller then refers to the page too. False: the key is there already; nothing is done.
  bool Insert(const PageKey& key, uint32_t parent, uint32_t page);
  // A request leaves: it gives up its references to pages[0 .. num_shared), and its own pages
  // behind them. Those that `keys` name, in order, go into the tree; what is there already and what
  // has no key comes back in *freed.
  void Release(std::span<const uint32_t> pages, uint32_t num_shared, std::span<const PageKey> keys,
               std::vector<uint32_t>* freed);
  // Takes the page out that was least recently used. num_unreferenced() must not be 0.
  uint32_t Evict();

  // How many of a chain's first pages, to all of which the caller refers, others refer to as well.
  uint32_t NumHeldByOthers(std::span<const uint32_t> chain) const;

  // Ends the process if something does not hold. O(pages).
  void CheckInvariants() const;

 private:
  static constexpr uint32_t kAbsent = UINT32_MAX - 1;
  struct Node {
    PageKey key;
    uint32_t parent = kAbsent;  // page; kNone: has none. kAbsent: the page is not in the tree
    uint32_t references = 0;
    uint32_t num_children = 0;
    uint32_t next_in_bucket = kNone;
    uint32_t newer = kNone, older = kNone;  // in the list of those without a reference
  };

  uint32_t& Bucket(const PageKey& key) { return buckets_[key.low & (buckets_.size() - 1)]; }
  uint32_t Find(const PageKey& key) const;
  void AddReference(uint32_t page);
  void DropReference(uint32_t page);

  std::vector<Node> nodes_;        // by page; the last is the list's head: its newer is the oldest
  std::vector<uint32_t> buckets_;  // first page of each; a power of two
  uint32_t num_pages_ = 0;
  uint32_t num_unreferenced_ = 0;
  std::vector<uint32_t> chain_;  // scratch
};

}  // namespace penstock::scheduler
