// Finds the tokens that stand in text as they are (control and user-defined ones), before anything
// else is split: leftmost first, the longest of those that begin there.
#pragma once

#include <bitset>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"

namespace penstock::router {

// As in tokenizer.json's added_tokens; a GGUF's have none of the flags but `special`.
struct AddedToken {
  std::string content;
  int32_t id = -1;
  bool special = false;      // a control token: only text where special tokens aren't parsed
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // takes the white space after it
  bool single_word = false;  // not where a letter, digit or the like is next to it
  bool normalized = false;   // found in the normalised text
};

// Immutable.
class AddedTokens {
 public:
  // Where two have the same content, the first counts. Those with empty content are never found.
  explicit AddedTokens(std::vector<AddedToken> tokens);

  bool empty() const { return tokens_.empty(); }

  // Calls, in the text's order, on_token(id) for each token found and on_text for the text between,
  // which is never empty. Without parse_special a control token is only text, and no other token is
  // looked for inside it (as the reference does).
  void Split(std::string_view text, bool parse_special,
             absl::FunctionRef<void(std::string_view)> on_text,
             absl::FunctionRef<void(int32_t)> on_token) const;

 private:
  // The longest that begins at `begin`, null if there is none.
  const AddedToken* LongestAt(std::string_view text, size_t begin) const;

  std::vector<AddedToken> tokens_;  // sorted by content, so that it can be walked like a trie
  std::bitset<256> first_bytes_;
};

}  // namespace penstock::router
