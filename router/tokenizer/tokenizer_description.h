// All that makes a tokeniser, as data: read from a GGUF file (gguf_tokenizer.h) or from a Hugging
// Face checkpoint (hf_tokenizer.h).
#pragma once

#include <cstdint>
#include <vector>

#include "router/tokenizer/added_tokens.h"
#include "router/tokenizer/normalizer.h"
#include "router/tokenizer/pre_tokenizer.h"
#include "router/tokenizer/vocabulary.h"

namespace penstock::router {

struct TokenizerDescription {
  Vocabulary vocabulary;
  std::vector<AddedToken> added_tokens;
  std::vector<NormalizerStep> normalizer;
  std::vector<PreTokenizerStep> pre_tokenizer;
  // What stands before and after a text prompt: BOS, as a rule, and nothing.
  std::vector<int32_t> prefix_ids;
  std::vector<int32_t> suffix_ids;
  // Spaces that encoding put before a text, and decoding takes away again.
  int num_leading_spaces = 0;
};

}  // namespace penstock::router
