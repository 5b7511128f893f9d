// A model's BPE tokeniser, with the same ids as its Hugging Face one: added tokens are split off
// first, the text between is normalised and split into words, then each word's symbols are merged
// (bpe.h). It is read from a GGUF's metadata or from a checkpoint's tokenizer.json.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/formats/gguf.h"
#include "common/formats/hf_config.h"
#include "router/tokenizer/added_tokens.h"
#include "router/tokenizer/bpe.h"
#include "router/tokenizer/normalizer.h"
#include "router/tokenizer/pre_tokenizer.h"
#include "router/tokenizer/tokenizer_description.h"
#include "router/tokenizer/vocabulary.h"

namespace penstock::router {

// All methods are const and thread-safe.
class Tokenizer {
 public:
  // InvalidArgument if the file's tokeniser is absent, damaged or of a kind Penstock doesn't know.
  // Needs the file during the call alone.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromGguf(const GgufFile& file);

  // From the folder's tokenizer.json and tokenizer_config.json (hf_tokenizer.h). `config` is the
  // folder's: it names BOS and what ends an answer. NotFound if there is no tokenizer.json;
  // InvalidArgument or Unimplemented, naming file and key, if it is damaged or of a kind that
  // Penstock doesn't know.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromHf(const std::string& dir,
                                                           const HfConfig& config);

  // For a model without a tokeniser, whose clients speak token ids: has_text() is false, text has
  // no ids and ids have no text.
  static std::unique_ptr<Tokenizer> WithoutText(const HfConfig& config);

  // The text's ids; neither BOS nor EOS is added. With parse_special the text of a control token
  // (<|im_start|>) becomes that token: right for rendered chat templates, wrong for what a user
  // typed. User-defined tokens are always taken. Text that isn't valid UTF-8 is encoded as if each
  // broken piece were U+FFFD (utf8.h); what the vocabulary has no token for is dropped, or its
  // "unknown" token.
  std::vector<int32_t> Encode(std::string_view text, bool parse_special) const;

  // A text prompt's ids: control tokens are parsed. With add_special the prompt gets what the model
  // wants around it, BOS as a rule. Not for rendered chats: the template writes its own.
  std::vector<int32_t> EncodePrompt(std::string_view text, bool add_special) const;

  // The ids' text, always valid UTF-8: what isn't becomes U+FFFD. Unknown ids stand for nothing.
  // With skip_special, control tokens are left out.
  std::string Decode(std::span<const int32_t> ids, bool skip_special) const;

  // What the token adds to the text: raw bytes, not always whole characters. Empty for an unknown
  // id (models pad their vocabularies). Lives as long as the Tokenizer.
  std::string_view TokenBytes(int32_t id) const;
  // Whether the token is a control token, such as <|im_end|>.
  bool IsSpecial(int32_t id) const;

  bool has_text() const { return has_text_; }
  // One more than the highest id that has a text; the model's own vocabulary may be larger.
  int vocab_size() const { return static_cast<int>(vocabulary_.tokens.size()); }
  int bos_id() const { return vocabulary_.bos_id; }  // -1 if none
  int eos_id() const { return vocabulary_.eos_id; }  // -1 if none
  // Whether EncodePrompt begins a prompt with BOS.
  bool add_bos() const { return !prefix_ids_.empty() && prefix_ids_.front() == bos_id(); }
  // The tokens that end an answer: eos_id first if there is one, then the end of turn and its like.
  std::vector<int32_t> eos_ids() const { return vocabulary_.end_ids; }

 private:
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(TokenizerDescription description);
  Tokenizer(TokenizerDescription description, std::unique_ptr<PreTokenizer> pre_tokenizer);
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // `at_start`: the text is the beginning of what Encode was given.
  void AppendText(std::string_view text, bool at_start, bool parse_special,
                  std::vector<int32_t>* ids) const;
  void AppendWord(std::string_view word, std::vector<int32_t>* ids) const;

  const Vocabulary vocabulary_;
  const AddedTokens added_tokens_;             // found in the text as it is
  const AddedTokens normalized_added_tokens_;  // found in the normalised text
  const Normalizer normalizer_;
  const std::unique_ptr<PreTokenizer> pre_tokenizer_;
  const std::vector<int32_t> prefix_ids_;
  const std::vector<int32_t> suffix_ids_;
  const int num_leading_spaces_;
  bool has_text_ = true;
  mutable WordCache cache_;
};

}  // namespace penstock::router
