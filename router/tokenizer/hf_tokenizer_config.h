// What a Hugging Face checkpoint says about its tokeniser beside tokenizer.json: the special
// tokens' texts and the chat templates. Source: transformers'
// PreTrainedTokenizerBase.from_pretrained.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace penstock::router {

struct HfTokenizerConfig {
  std::string path;  // of tokenizer_config.json, for errors
  // By the names that templates use: bos_token, eos_token, unk_token, pad_token and their like.
  std::map<std::string, std::string> special_tokens;
  // Whether prompts get BOS and EOS; where unset, tokenizer.json's post-processor decides.
  std::optional<bool> add_bos_token;
  std::optional<bool> add_eos_token;
  // By name: "default", and perhaps "tool_use" and others.
  std::map<std::string, std::string> chat_templates;
};

// Reads `dir`/tokenizer_config.json, special_tokens_map.json for the special tokens it doesn't
// name, and the templates that lie in files of their own (chat_template.jinja and
// additional_chat_templates/*.jinja; they go before tokenizer_config.json's). None of the files
// must be there. InvalidArgument, naming file and key, if one is damaged.
absl::StatusOr<HfTokenizerConfig> ReadHfTokenizerConfig(const std::string& dir);

}  // namespace penstock::router
