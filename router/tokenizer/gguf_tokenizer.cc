#include "router/tokenizer/gguf_tokenizer.h"

#include <algorithm>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "common/status.h"
#include "router/tokenizer/byte_alphabet.h"

namespace penstock::router {
namespace {

// Tokens that end an answer, known by their text: GGUF files often name the first alone.
constexpr std::string_view kEndTexts[] = {
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>",    "<|end|>",    "<|endoftext|>",
    "<|eot|>",    "<EOT>",      "<end_of_turn>", "<|return|>", "<|end_of_text|>",
};

absl::Status Bad(const GgufFile& file, std::string_view problem) {
  return absl::InvalidArgumentError(fmt::format(
      "{}: {}: the vocabulary is damaged, convert the model again", file.path(), problem));
}

absl::Status LoadTokens(const GgufFile& file, const std::vector<std::string_view>& texts,
                        Vocabulary* vocabulary) {
  ASSIGN_OR_RETURN(const auto kinds, file.FindArray<int32_t>("tokenizer.ggml.token_type"));
  if (texts.empty()) return Bad(file, "tokenizer.ggml.tokens is empty");
  if (kinds.has_value() && kinds->size() != texts.size()) {
    return Bad(file, fmt::format("tokenizer.ggml.token_type has {} entries for {} tokens",
                                 kinds->size(), texts.size()));
  }
  vocabulary->tokens.reserve(texts.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    const int32_t kind = kinds.has_value() ? (*kinds)[i] : static_cast<int32_t>(TokenKind::kNormal);
    if (kind < 1 || kind > 6) return Bad(file, fmt::format("token {} has the type {}", i, kind));
    Token token{.bytes = std::string(texts[i]), .kind = static_cast<TokenKind>(kind)};
    // Control and user-defined tokens stand in the file as they are.
    if (token.kind != TokenKind::kControl && token.kind != TokenKind::kUserDefined) {
      token.bytes = BytesOfText(texts[i]).value_or(token.bytes);
    }
    vocabulary->tokens.push_back(std::move(token));
  }
  return absl::OkStatus();
}

absl::Status LoadMerges(const GgufFile& file,
                        const std::unordered_map<std::string_view, int32_t>& ids,
                        Vocabulary* vocabulary) {
  ASSIGN_OR_RETURN(const auto merges, file.GetArray<std::string_view>("tokenizer.ggml.merges"));
  vocabulary->merges.reserve(merges.size());
  std::string merged;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const size_t space = merges[rank].find(' ', 1);
    if (space == std::string_view::npos) {
      return Bad(file, fmt::format("merge {} is not two tokens", rank));
    }
    const std::string_view left = merges[rank].substr(0, space);
    const std::string_view right = merges[rank].substr(space + 1);
    merged.assign(left).append(right);
    const auto left_id = ids.find(left);
    const auto right_id = ids.find(right);
    const auto merged_id = ids.find(merged);
    if (left_id == ids.end() || right_id == ids.end() || merged_id == ids.end()) {
      return Bad(file, fmt::format("merge {} names a token that isn't in the vocabulary", rank));
    }
    vocabulary->merges[Vocabulary::MergeKey(left_id->second, right_id->second)] = {
        .rank = static_cast<int32_t>(rank), .merged_id = merged_id->second};
  }
  return absl::OkStatus();
}

// A special token's id, -1 if the file names none.
absl::StatusOr<int32_t> FindId(const GgufFile& file, std::string_view name, size_t num_tokens) {
  ASSIGN_OR_RETURN(const auto id, file.FindU32(name));
  if (!id.has_value()) return -1;
  if (*id >= num_tokens) {
    return Bad(file, fmt::format("{} is {}, but there are {} tokens", name, *id, num_tokens));
  }
  return static_cast<int32_t>(*id);
}

absl::Status LoadSpecialIds(const GgufFile& file, Vocabulary* vocabulary) {
  const size_t num_tokens = vocabulary->tokens.size();
  ASSIGN_OR_RETURN(vocabulary->bos_id, FindId(file, "tokenizer.ggml.bos_token_id", num_tokens));
  ASSIGN_OR_RETURN(vocabulary->eos_id, FindId(file, "tokenizer.ggml.eos_token_id", num_tokens));
  std::vector<int32_t>& ends = vocabulary->end_ids;
  const auto add = [&ends](int32_t id) {
    if (id >= 0 && std::find(ends.begin(), ends.end(), id) == ends.end()) ends.push_back(id);
  };
  add(vocabulary->eos_id);
  for (const char* name : {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    ASSIGN_OR_RETURN(const int32_t id, FindId(file, name, num_tokens));
    add(id);
  }
  for (size_t id = 0; id < num_tokens; ++id) {
    const Token& token = vocabulary->tokens[id];
    const bool is_end =
        token.kind == TokenKind::kControl &&
        std::find(std::begin(kEndTexts), std::end(kEndTexts), token.bytes) != std::end(kEndTexts);
    if (is_end) add(static_cast<int32_t>(id));
  }
  return absl::OkStatus();
}

absl::StatusOr<Vocabulary> LoadVocabulary(const GgufFile& file) {
  ASSIGN_OR_RETURN(const std::string_view model, file.GetString("tokenizer.ggml.model"));
  if (model != "gpt2") {
    return InvalidArgument(
        "{}: tokenizer.ggml.model is \"{}\"; Penstock knows byte-level BPE (\"gpt2\") alone: serve "
        "a model that has one",
        file.path(), model);
  }
  ASSIGN_OR_RETURN(const auto texts, file.GetArray<std::string_view>("tokenizer.ggml.tokens"));
  Vocabulary vocabulary;
  RETURN_IF_ERROR(LoadTokens(file, texts, &vocabulary));

  std::unordered_map<std::string_view, int32_t> ids;
  ids.reserve(texts.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    if (!ids.emplace(texts[i], static_cast<int32_t>(i)).second) {
      return Bad(file, fmt::format("tokens {} and {} are the same", ids[texts[i]], i));
    }
    const Token& token = vocabulary.tokens[i];
    const bool is_byte = token.kind != TokenKind::kControl &&
                         token.kind != TokenKind::kUserDefined && token.bytes.size() == 1;
    if (is_byte) {
      vocabulary.byte_ids[static_cast<uint8_t>(token.bytes[0])] = static_cast<int32_t>(i);
    }
  }
  RETURN_IF_ERROR(LoadMerges(file, ids, &vocabulary));
  RETURN_IF_ERROR(LoadSpecialIds(file, &vocabulary));
  return vocabulary;
}

}  // namespace

absl::StatusOr<TokenizerDescription> ReadGgufTokenizer(const GgufFile& file) {
  TokenizerDescription description;
  ASSIGN_OR_RETURN(description.vocabulary, LoadVocabulary(file));
  ASSIGN_OR_RETURN(const std::string_view pre, file.GetString("tokenizer.ggml.pre"));
  const auto found = FindPreTokenizerFamily(pre);
  if (!found.ok()) return InvalidArgument("{}: {}", file.path(), Message(found.status()));
  const PreTokenizerFamily& family = **found;
  description.pre_tokenizer.emplace_back(SplitStep{.pattern = std::string(family.pattern)});
  if (family.nfc) description.normalizer.push_back({.kind = NormalizerStep::Kind::kNfc});

  Vocabulary& vocabulary = description.vocabulary;
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    const Token& token = vocabulary.tokens[i];
    const auto id = static_cast<int32_t>(i);
    const bool special = token.kind == TokenKind::kControl;
    if (special || token.kind == TokenKind::kUserDefined) {
      description.added_tokens.push_back({.content = token.bytes, .id = id, .special = special});
    } else if (family.ignore_merges && token.kind == TokenKind::kNormal) {
      vocabulary.whole_words.emplace(token.bytes, id);
    }
  }
  ASSIGN_OR_RETURN(const auto add_bos, file.FindBool("tokenizer.ggml.add_bos_token"));
  if (vocabulary.bos_id >= 0 && add_bos.value_or(family.adds_bos)) {
    description.prefix_ids = {vocabulary.bos_id};
  }
  return description;
}

}  // namespace penstock::router
