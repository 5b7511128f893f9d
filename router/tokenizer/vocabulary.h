// The tables of a byte-level BPE tokeniser, read from a GGUF's tokenizer.ggml.* metadata.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "common/formats/gguf.h"

namespace penstock::router {

// Values are the codes in tokenizer.ggml.token_type.
enum class TokenKind : uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

struct Token {
  std::string bytes;  // what it stands for, as raw bytes: not always whole characters
  TokenKind kind;
};

struct Merge {
  int32_t rank;  // lower ones go first
  int32_t merged_id;
};

// Immutable once loaded.
struct Vocabulary {
  std::vector<Token> tokens;  // by id
  // The token of each single byte, -1 if the vocabulary lacks it (then the byte is dropped, as the
  // reference does).
  std::array<int32_t, 256> byte_ids;
  absl::flat_hash_map<uint64_t, Merge> merges;  // by MergeKey(left id, right id)
  std::vector<int32_t> end_ids;                 // end of text first, then end of turn and its like
  int32_t bos_id = -1;
  int32_t eos_id = -1;

  static uint64_t MergeKey(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
};

// InvalidArgument, naming the file and what is wrong, for anything that doesn't fit together.
absl::StatusOr<Vocabulary> LoadVocabulary(const GgufFile& file);

}  // namespace penstock::router
