#include "router/tokenizer/tokenizer.h"

#include <utility>

#include "common/status.h"
#include "router/tokenizer/gguf_tokenizer.h"
#include "router/tokenizer/hf_tokenizer.h"
#include "router/tokenizer/utf8.h"

namespace penstock::router {
namespace {

// Those that are found in the normalised text, with their content normalised too; or the others.
std::vector<AddedToken> Select(const TokenizerDescription& description, bool normalized) {
  const Normalizer normalizer(description.normalizer);
  std::vector<AddedToken> tokens;
  for (const AddedToken& token : description.added_tokens) {
    if (token.normalized != normalized) continue;
    tokens.push_back(token);
    std::string storage;
    if (normalized) {
      tokens.back().content = std::string(normalizer.Apply(token.content, &storage));
    }
  }
  return tokens;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromGguf(const GgufFile& file) {
  ASSIGN_OR_RETURN(TokenizerDescription description, ReadGgufTokenizer(file));
  return Create(std::move(description));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromHf(const std::string& dir,
                                                             const HfConfig& config) {
  ASSIGN_OR_RETURN(TokenizerDescription description, ReadHfTokenizer(dir, config));
  return Create(std::move(description));
}

std::unique_ptr<Tokenizer> Tokenizer::WithoutText(const HfConfig& config) {
  TokenizerDescription description;
  description.vocabulary.bos_id = config.bos_token_id.value_or(-1);
  description.vocabulary.end_ids = config.eos_token_ids;
  if (!config.eos_token_ids.empty()) description.vocabulary.eos_id = config.eos_token_ids.front();
  std::unique_ptr<Tokenizer> tokenizer(
      new Tokenizer(std::move(description), *PreTokenizer::Create({})));
  tokenizer->has_text_ = false;
  return tokenizer;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Create(TokenizerDescription description) {
  ASSIGN_OR_RETURN(auto pre_tokenizer, PreTokenizer::Create(std::move(description.pre_tokenizer)));
  return std::unique_ptr<Tokenizer>(
      new Tokenizer(std::move(description), std::move(pre_tokenizer)));
}

Tokenizer::Tokenizer(TokenizerDescription description, std::unique_ptr<PreTokenizer> pre_tokenizer)
    : vocabulary_(std::move(description.vocabulary)),
      added_tokens_(Select(description, false)),
      normalized_added_tokens_(Select(description, true)),
      normalizer_(std::move(description.normalizer)),
      pre_tokenizer_(std::move(pre_tokenizer)),
      prefix_ids_(std::move(description.prefix_ids)),
      suffix_ids_(std::move(description.suffix_ids)),
      num_leading_spaces_(description.num_leading_spaces) {}

void Tokenizer::AppendWord(std::string_view word, std::vector<int32_t>* ids) const {
  if (!vocabulary_.whole_words.empty()) {
    const auto whole = vocabulary_.whole_words.find(word);
    if (whole != vocabulary_.whole_words.end()) {
      ids->push_back(whole->second);
      return;
    }
  }
  const uint64_t hash = WordCache::Hash(word);
  if (cache_.Find(word, hash, ids)) return;
  const size_t before = ids->size();
  EncodeWord(vocabulary_, word, ids);
  cache_.Insert(word, hash, ids->data() + before, ids->size() - before);
}

void Tokenizer::AppendText(std::string_view text, bool at_start, bool parse_special,
                           std::vector<int32_t>* ids) const {
  std::string storage;
  text = normalizer_.Apply(text, &storage);
  const auto append_words = [&](std::string_view piece) {
    pre_tokenizer_->Split(piece, at_start && piece.data() == text.data(),
                          [&](std::string_view word) { AppendWord(word, ids); });
  };
  if (normalized_added_tokens_.empty()) return append_words(text);
  normalized_added_tokens_.Split(text, parse_special, append_words,
                                 [ids](int32_t id) { ids->push_back(id); });
}

std::vector<int32_t> Tokenizer::Encode(std::string_view text, bool parse_special) const {
  std::string replaced;
  if (!IsValidUtf8(text)) {
    replaced = ReplaceInvalidUtf8(text);
    text = replaced;
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + 1);  // a token of English is about four bytes
  added_tokens_.Split(
      text, parse_special,
      [&](std::string_view piece) {
        AppendText(piece, piece.data() == text.data(), parse_special, &ids);
      },
      [&ids](int32_t id) { ids.push_back(id); });
  return ids;
}

std::vector<int32_t> Tokenizer::EncodePrompt(std::string_view text, bool add_special) const {
  std::vector<int32_t> ids = Encode(text, /*parse_special=*/true);
  if (!add_special) return ids;
  ids.insert(ids.begin(), prefix_ids_.begin(), prefix_ids_.end());
  ids.insert(ids.end(), suffix_ids_.begin(), suffix_ids_.end());
  return ids;
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (int32_t id : ids) {
    if (skip_special && IsSpecial(id)) continue;
    bytes += TokenBytes(id);
  }
  for (int i = 0; i < num_leading_spaces_ && bytes.starts_with(' '); ++i) bytes.erase(0, 1);
  return IsValidUtf8(bytes) ? bytes : ReplaceInvalidUtf8(bytes);
}

std::string_view Tokenizer::TokenBytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  return vocabulary_.tokens[static_cast<size_t>(id)].bytes;
}

bool Tokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < vocab_size() &&
         vocabulary_.tokens[static_cast<size_t>(id)].kind == TokenKind::kControl;
}

}  // namespace penstock::router
