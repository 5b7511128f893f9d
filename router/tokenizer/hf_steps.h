// The parts of a tokenizer.json around its model: normalizer, pre_tokenizer, post_processor,
// decoder. Internal to hf_tokenizer.cc. Source: the tokenizers library's serialisation.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/formats/json_file.h"
#include "router/tokenizer/normalizer.h"
#include "router/tokenizer/pre_tokenizer.h"

namespace penstock::router {

// All take the file's top level. InvalidArgument and Unimplemented, naming file and key.

absl::StatusOr<std::vector<NormalizerStep>> ReadHfNormalizer(const JsonKeys& file);

struct HfPreTokenizer {
  std::vector<PreTokenizerStep> steps;
  bool byte_level = false;  // words become bytes
};
absl::StatusOr<HfPreTokenizer> ReadHfPreTokenizer(const JsonKeys& file);

struct HfPostProcessor {
  std::vector<int32_t> prefix_ids;  // before a prompt
  std::vector<int32_t> suffix_ids;  // after it
};
absl::StatusOr<HfPostProcessor> ReadHfPostProcessor(const JsonKeys& file);

// How a token's text becomes what it adds to a text.
struct HfDecoder {
  bool byte_level = false;            // it is in GPT-2's alphabet
  bool byte_fallback = false;         // <0x0A> is that byte
  std::vector<ReplaceStep> replaced;  // in order
  int num_leading_spaces = 0;         // taken away from the text's beginning
};
absl::StatusOr<HfDecoder> ReadHfDecoder(const JsonKeys& file, bool byte_level);

}  // namespace penstock::router
