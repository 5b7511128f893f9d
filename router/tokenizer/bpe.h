// Byte-pair encoding of one word: pairs of neighbours are merged, lowest rank first, leftmost among
// equals, until none can be.
// Source: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units".
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string_view>
#include <vector>

#include "router/tokenizer/vocabulary.h"

namespace penstock::router {

// Appends the word's tokens to `ids`. Time: the word's length squared for short words, n log n for
// long ones, so that a request of one endless word does no harm.
void EncodeWord(const Vocabulary& vocabulary, std::string_view word, std::vector<int32_t>* ids);

// Remembers the tokens of words, most of which are short and come again. A fixed number of slots,
// in which a new word takes the place of an old one: bounded memory, nothing to evict. Thread-safe.
class WordCache {
 public:
  WordCache();
  // Appends the word's tokens to `ids` if they are known.
  bool Find(std::string_view word, uint64_t hash, std::vector<int32_t>* ids) const;
  // `ids[0 .. num_ids)` are the word's tokens.
  void Insert(std::string_view word, uint64_t hash, const int32_t* ids, size_t num_ids);
  static uint64_t Hash(std::string_view word);

 private:
  static constexpr size_t kNumSlots = 1 << 14;
  static constexpr size_t kNumLocks = 64;
  static constexpr size_t kMaxWordBytes = 34;
  static constexpr size_t kMaxIds = 7;

  struct Slot {
    uint8_t num_bytes = 0;
    uint8_t num_ids = 0;
    char word[kMaxWordBytes];
    int32_t ids[kMaxIds];
  };
  static_assert(sizeof(Slot) == 64);

  std::mutex& LockOf(uint64_t hash) const { return locks_[hash % kNumLocks]; }

  std::unique_ptr<Slot[]> slots_;
  std::unique_ptr<std::mutex[]> locks_;
};

}  // namespace penstock::router
