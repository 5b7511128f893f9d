#include "router/tokenizer/tokenizer.h"

#include <utf8proc.h>

#include <cstdlib>
#include <utility>

#include "common/status.h"
#include "fmt/format.h"
#include "router/tokenizer/utf8.h"

namespace penstock::router {
namespace {

// `text`, valid UTF-8, in Unicode's normal form C.
std::string ToNfc(std::string_view text) {
  utf8proc_uint8_t* normalised = nullptr;
  const utf8proc_ssize_t size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &normalised,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  if (size < 0) return std::string(text);  // out of memory, or more than 2 GiB
  std::string result(reinterpret_cast<const char*>(normalised), static_cast<size_t>(size));
  std::free(normalised);
  return result;
}

bool IsAscii(std::string_view text) {
  for (char c : text) {
    if (static_cast<uint8_t>(c) >= 0x80) return false;
  }
  return true;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromGguf(const GgufFile& file) {
  ASSIGN_OR_RETURN(Vocabulary vocabulary, LoadVocabulary(file));
  ASSIGN_OR_RETURN(const std::string_view pre, file.GetString("tokenizer.ggml.pre"));
  const auto family = FindPreTokenizerFamily(pre);
  if (!family.ok()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: {}", file.path(), std::string(family.status().message())));
  }
  ASSIGN_OR_RETURN(auto pre_tokenizer, PreTokenizer::Create(**family));
  ASSIGN_OR_RETURN(const auto add_bos, file.FindBool("tokenizer.ggml.add_bos_token"));
  std::unique_ptr<Tokenizer> tokenizer(
      new Tokenizer(std::move(vocabulary), **family, std::move(pre_tokenizer)));
  tokenizer->add_bos_ = tokenizer->bos_id() >= 0 && add_bos.value_or((*family)->adds_bos);
  return tokenizer;
}

Tokenizer::Tokenizer(Vocabulary vocabulary, const PreTokenizerFamily& family,
                     std::unique_ptr<PreTokenizer> pre_tokenizer)
    : vocabulary_(std::move(vocabulary)),
      family_(family),
      pre_tokenizer_(std::move(pre_tokenizer)),
      added_tokens_(vocabulary_, true),
      user_defined_tokens_(vocabulary_, false) {
  if (!family_.ignore_merges) return;
  for (size_t id = 0; id < vocabulary_.tokens.size(); ++id) {
    const Token& token = vocabulary_.tokens[id];
    if (token.kind == TokenKind::kNormal) {
      whole_words_.emplace(token.bytes, static_cast<int32_t>(id));
    }
  }
}

void Tokenizer::AppendWord(std::string_view word, std::vector<int32_t>* ids) const {
  if (family_.ignore_merges) {
    const auto whole = whole_words_.find(word);
    if (whole != whole_words_.end()) {
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

void Tokenizer::AppendText(std::string_view text, std::vector<int32_t>* ids) const {
  std::string normalised;
  if (family_.nfc && !IsAscii(text)) {
    normalised = ToNfc(text);
    text = normalised;
  }
  pre_tokenizer_->Split(text, [this, ids](std::string_view word) { AppendWord(word, ids); });
}

std::vector<int32_t> Tokenizer::Encode(std::string_view text, bool parse_special) const {
  std::string replaced;
  if (!IsValidUtf8(text)) {
    replaced = ReplaceInvalidUtf8(text);
    text = replaced;
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + 1);  // a token of English is about four bytes
  const AddedTokens& added = parse_special ? added_tokens_ : user_defined_tokens_;
  for (size_t done = 0; done < text.size();) {
    const AddedTokens::Match match = added.Find(text, done);
    AppendText(text.substr(done, match.begin - done), &ids);
    if (match.end > match.begin) ids.push_back(match.id);
    done = match.end;
  }
  return ids;
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (int32_t id : ids) {
    if (skip_special && IsSpecial(id)) continue;
    bytes += TokenBytes(id);
  }
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
