// The tables of a BPE tokeniser, whatever file they come from.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace penstock::router {

// Values are GGUF's codes (tokenizer.ggml.token_type).
enum class TokenKind : uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

struct Token {
  std::string bytes;  // what it adds to a text, as raw bytes: not always whole characters
  TokenKind kind;
};

struct Merge {
  int32_t rank;  // lower ones go first
  int32_t merged_id;
};

// Ids by text, to be looked up by std::string_view (abseil's own hash knows another one).
struct TextHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};
using IdByText = absl::flat_hash_map<std::string, int32_t, TextHash, std::equal_to<>>;

// Immutable once loaded.
struct Vocabulary {
  std::vector<Token> tokens;  // by id

  // What a word is before anything is merged. Byte-level: each byte's token. Else each character's;
  // for one that has none its bytes' tokens, if byte_ids has them all. What has no token becomes
  // unk_id (neighbours one, with fuse_unk) or, if there is none, is dropped.
  bool byte_level = true;
  std::array<int32_t, 256> byte_ids;  // -1: none
  IdByText character_ids;
  int32_t unk_id = -1;
  bool fuse_unk = false;

  absl::flat_hash_map<uint64_t, Merge> merges;  // by MergeKey(left id, right id)
  // Words that are taken as they are, without merging: empty unless the model ignores merges.
  IdByText whole_words;

  std::vector<int32_t> end_ids;  // end of text first, then end of turn and its like
  int32_t bos_id = -1;
  int32_t eos_id = -1;

  Vocabulary() { byte_ids.fill(-1); }
  static uint64_t MergeKey(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
};

}  // namespace penstock::router
