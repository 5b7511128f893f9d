// A tokeniser's description from a Hugging Face checkpoint: tokenizer.json, as the tokenizers
// library writes it, and tokenizer_config.json.
//
// BPE models: byte-level ones (GPT-2, Llama 3, Qwen, SmolLM ...) and those over characters with
// bytes to fall back on, which SentencePiece models become (Llama 2, Mistral ...).
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/formats/hf_config.h"
#include "router/tokenizer/tokenizer_description.h"

namespace penstock::router {

// What ends an answer: `config`'s end tokens, then tokenizer_config.json's eos_token if it is
// another one (fine-tuned chat models often name their end of turn there alone).
//
// NotFound if there is no tokenizer.json; InvalidArgument, naming file and key, if something is
// damaged or doesn't fit together; Unimplemented, naming it and what is known, for a kind of
// tokeniser or a step that Penstock doesn't know.
absl::StatusOr<TokenizerDescription> ReadHfTokenizer(const std::string& dir,
                                                     const HfConfig& config);

}  // namespace penstock::router
