// Byte-level BPE from a GGUF's own vocabulary, with the same ids as the model's Hugging Face
// tokeniser: added tokens are split off first, then the text is split into words (pre_tokenizer.h),
// then each word's bytes are merged (bpe.h).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/formats/gguf.h"
#include "router/tokenizer/added_tokens.h"
#include "router/tokenizer/bpe.h"
#include "router/tokenizer/pre_tokenizer.h"
#include "router/tokenizer/vocabulary.h"

namespace penstock::router {

// All methods are const and thread-safe. Needs the GgufFile during FromGguf alone.
class Tokenizer {
 public:
  // InvalidArgument if the file's tokeniser is absent, damaged or of a kind Penstock doesn't know.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromGguf(const GgufFile& file);

  // The text's ids; neither BOS nor EOS is added. With parse_special the text of a control token
  // (<|im_start|>) becomes that token: right for rendered chat templates, wrong for what a user
  // typed. User-defined tokens are always taken. Text that isn't valid UTF-8 is encoded as if each
  // broken piece were U+FFFD (utf8.h); a byte for which the vocabulary has no token is dropped.
  std::vector<int32_t> Encode(std::string_view text, bool parse_special) const;

  // The ids' text, always valid UTF-8: what isn't becomes U+FFFD. Unknown ids stand for nothing.
  // With skip_special, control tokens are left out.
  std::string Decode(std::span<const int32_t> ids, bool skip_special) const;

  // What the token adds to the text: raw bytes, not always whole characters. Empty for an unknown
  // id (models pad their vocabularies). Lives as long as the Tokenizer.
  std::string_view TokenBytes(int32_t id) const;
  // Whether the token is a control token, such as <|im_end|>.
  bool IsSpecial(int32_t id) const;

  int vocab_size() const { return static_cast<int>(vocabulary_.tokens.size()); }
  int bos_id() const { return vocabulary_.bos_id; }  // -1 if none
  int eos_id() const { return vocabulary_.eos_id; }  // -1 if none
  // Whether a prompt starts with BOS. Not for rendered chats: the template writes its own.
  bool add_bos() const { return add_bos_; }
  // The tokens that end an answer: eos_id first if there is one, then the end of turn and its like.
  std::vector<int32_t> eos_ids() const { return vocabulary_.end_ids; }

 private:
  Tokenizer(Vocabulary vocabulary, const PreTokenizerFamily& family,
            std::unique_ptr<PreTokenizer> pre_tokenizer);
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  void AppendText(std::string_view text, std::vector<int32_t>* ids) const;
  void AppendWord(std::string_view word, std::vector<int32_t>* ids) const;

  const Vocabulary vocabulary_;
  const PreTokenizerFamily& family_;
  const std::unique_ptr<PreTokenizer> pre_tokenizer_;
  const AddedTokens added_tokens_;         // with control tokens
  const AddedTokens user_defined_tokens_;  // without
  absl::flat_hash_map<std::string_view, int32_t>
      whole_words_;  // filled where family_.ignore_merges
  bool add_bos_ = false;
  mutable WordCache cache_;
};

}  // namespace penstock::router
