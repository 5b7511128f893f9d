#include "router/tokenizer/bpe.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <queue>
#include <string>

#include "router/tokenizer/utf8.h"

namespace penstock::router {
namespace {

constexpr size_t kShortWord = 48;  // symbols; up to here scanning beats the heap
constexpr int32_t kNoRank = std::numeric_limits<int32_t>::max();

Merge FindMerge(const Vocabulary& vocabulary, int32_t left, int32_t right) {
  const auto found = vocabulary.merges.find(Vocabulary::MergeKey(left, right));
  return found == vocabulary.merges.end() ? Merge{kNoRank, -1} : found->second;
}

// `symbols` holds the word's `count` symbols, and in the end the tokens. Returns their number.
size_t MergeShort(const Vocabulary& vocabulary, int32_t* symbols, size_t count) {
  Merge pairs[kShortWord];  // pairs[i] merges symbols i and i + 1
  for (size_t i = 0; i + 1 < count; ++i) {
    pairs[i] = FindMerge(vocabulary, symbols[i], symbols[i + 1]);
  }
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (pairs[i].rank < pairs[best].rank) best = i;
    }
    if (pairs[best].rank == kNoRank) break;
    symbols[best] = pairs[best].merged_id;
    --count;
    for (size_t i = best + 1; i < count; ++i) {
      symbols[i] = symbols[i + 1];
      pairs[i - 1] = pairs[i];
    }
    if (best > 0) pairs[best - 1] = FindMerge(vocabulary, symbols[best - 1], symbols[best]);
    if (best + 1 < count) pairs[best] = FindMerge(vocabulary, symbols[best], symbols[best + 1]);
  }
  return count;
}

// The same for long words: a linked list of symbols and a heap of the pairs that could be merged.
class LongWord {
 public:
  LongWord(const Vocabulary& vocabulary, const std::vector<int32_t>& symbols)
      : vocabulary_(vocabulary) {
    nodes_.reserve(symbols.size());
    for (size_t i = 0; i < symbols.size(); ++i) {
      const auto at = static_cast<int32_t>(i);
      nodes_.push_back({symbols[i], at - 1, i + 1 < symbols.size() ? at + 1 : -1});
    }
    for (size_t i = 0; i + 1 < nodes_.size(); ++i) Offer(static_cast<int32_t>(i));
  }

  void AppendTokens(std::vector<int32_t>* ids) {
    while (!heap_.empty()) {
      const Candidate candidate = heap_.top();
      heap_.pop();
      Node& left = nodes_[candidate.left];
      // The pair may have changed since it was offered.
      if (left.id < 0 || left.next < 0) continue;
      Node& right = nodes_[left.next];
      const Merge merge = FindMerge(vocabulary_, left.id, right.id);
      if (merge.rank != candidate.rank) continue;
      left.id = merge.merged_id;
      right.id = -1;
      left.next = right.next;
      if (left.next >= 0) nodes_[left.next].previous = candidate.left;
      if (left.previous >= 0) Offer(left.previous);
      Offer(candidate.left);
    }
    for (int32_t at = 0; at >= 0; at = nodes_[at].next) ids->push_back(nodes_[at].id);
  }

 private:
  struct Node {
    int32_t id;  // -1 once merged into its left neighbour
    int32_t previous;
    int32_t next;
  };
  struct Candidate {
    int32_t rank;
    int32_t left;
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };

  void Offer(int32_t left) {
    if (nodes_[left].next < 0) return;
    const Merge merge = FindMerge(vocabulary_, nodes_[left].id, nodes_[nodes_[left].next].id);
    if (merge.rank != kNoRank) heap_.push({merge.rank, left});
  }

  const Vocabulary& vocabulary_;
  std::vector<Node> nodes_;
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> heap_;
};

// Calls add(id) for each symbol of the word before anything is merged (vocabulary.h).
template <typename Add>
void ForSymbols(const Vocabulary& vocabulary, std::string_view word, Add add) {
  bool unknown_before = false;
  const auto add_unknown = [&] {
    if (vocabulary.unk_id >= 0 && !(unknown_before && vocabulary.fuse_unk)) add(vocabulary.unk_id);
    unknown_before = true;
  };
  const auto byte_id = [&](char c) { return vocabulary.byte_ids[static_cast<uint8_t>(c)]; };
  if (vocabulary.byte_level) {
    for (const char c : word) {
      if (byte_id(c) < 0) {
        add_unknown();
      } else {
        add(byte_id(c));
        unknown_before = false;
      }
    }
    return;
  }
  while (!word.empty()) {
    const std::string_view character = word.substr(0, NextUtf8(word).length);
    word.remove_prefix(character.size());
    const auto found = vocabulary.character_ids.find(character);
    if (found != vocabulary.character_ids.end()) {
      add(found->second);
      unknown_before = false;
    } else if (std::all_of(character.begin(), character.end(),
                           [&](char c) { return byte_id(c) >= 0; })) {
      for (const char c : character) add(byte_id(c));
      unknown_before = false;
    } else {
      add_unknown();
    }
  }
}

}  // namespace

void EncodeWord(const Vocabulary& vocabulary, std::string_view word, std::vector<int32_t>* ids) {
  // A symbol is at least a byte.
  if (word.size() <= kShortWord) {
    int32_t symbols[kShortWord];
    size_t count = 0;
    ForSymbols(vocabulary, word, [&](int32_t id) { symbols[count++] = id; });
    count = MergeShort(vocabulary, symbols, count);
    ids->insert(ids->end(), symbols, symbols + count);
    return;
  }
  std::vector<int32_t> symbols;
  symbols.reserve(word.size());
  ForSymbols(vocabulary, word, [&](int32_t id) { symbols.push_back(id); });
  if (!symbols.empty()) LongWord(vocabulary, symbols).AppendTokens(ids);
}

WordCache::WordCache() : slots_(new Slot[kNumSlots]), locks_(new std::mutex[kNumLocks]) {}

uint64_t WordCache::Hash(std::string_view word) { return std::hash<std::string_view>()(word); }

bool WordCache::Find(std::string_view word, uint64_t hash, std::vector<int32_t>* ids) const {
  if (word.size() > kMaxWordBytes) return false;
  const Slot& slot = slots_[hash % kNumSlots];
  std::lock_guard lock(LockOf(hash));
  if (slot.num_bytes != word.size() || std::memcmp(slot.word, word.data(), word.size()) != 0) {
    return false;
  }
  ids->insert(ids->end(), slot.ids, slot.ids + slot.num_ids);
  return true;
}

void WordCache::Insert(std::string_view word, uint64_t hash, const int32_t* ids, size_t num_ids) {
  if (word.size() > kMaxWordBytes || num_ids > kMaxIds) return;
  Slot& slot = slots_[hash % kNumSlots];
  std::lock_guard lock(LockOf(hash));
  slot.num_bytes = static_cast<uint8_t>(word.size());
  slot.num_ids = static_cast<uint8_t>(num_ids);
  std::memcpy(slot.word, word.data(), word.size());
  if (num_ids > 0) std::memcpy(slot.ids, ids, num_ids * sizeof(int32_t));
}

}  // namespace penstock::router
