// Finds the tokens that stand in text as they are (control and user-defined ones), before anything
// else is split: leftmost first, the longest of those that begin there.
#pragma once

#include <bitset>
#include <cstdint>
#include <string_view>
#include <vector>

#include "router/tokenizer/vocabulary.h"

namespace penstock::router {

// Immutable; `vocabulary` must outlive it.
class AddedTokens {
 public:
  // With control tokens, or without: then text that looks like one is only text.
  AddedTokens(const Vocabulary& vocabulary, bool with_control);

  struct Match {
    size_t begin;
    size_t end;  // begin == end: none
    int32_t id;
  };
  // The first at or after `from`.
  Match Find(std::string_view text, size_t from) const;

 private:
  struct Entry {
    std::string_view text;
    int32_t id;
  };
  Match LongestAt(std::string_view text, size_t begin) const;

  std::vector<Entry> entries_;  // sorted by text, so that it can be walked like a trie
  std::bitset<256> first_bytes_;
};

}  // namespace penstock::router
