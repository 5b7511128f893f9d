#include "router/tokenizer/vocabulary.h"

#include <algorithm>
#include <optional>
#include <unordered_map>

#include "common/status.h"
#include "fmt/format.h"

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

// GPT-2 writes each byte as a printable character: bytes that are printable in Latin-1 as
// themselves, the others, in order, as U+0100 and up. The inverse, by code point; -1 for none.
std::array<int16_t, 0x144> MakeByteOfCodePoint() {
  std::array<int16_t, 0x144> byte_of{};
  byte_of.fill(-1);
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
    byte_of[printable ? byte : next++] = static_cast<int16_t>(byte);
  }
  return byte_of;
}

// The raw bytes that a token's text stands for, nullopt if it isn't in GPT-2's alphabet.
std::optional<std::string> BytesOf(std::string_view text) {
  static const std::array<int16_t, 0x144> kByteOf = MakeByteOfCodePoint();
  std::string bytes;
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<uint8_t>(text[i]);
    uint32_t code_point = lead;
    if (lead >= 0x80) {
      // The alphabet ends at U+0143, so that two bytes are the most.
      if (lead < 0xc2 || lead > 0xc5 || i + 1 == text.size()) return std::nullopt;
      const auto next = static_cast<uint8_t>(text[i + 1]);
      if ((next & 0xc0) != 0x80) return std::nullopt;
      code_point = (lead & 0x1fu) << 6 | (next & 0x3fu);
    }
    if (code_point >= kByteOf.size() || kByteOf[code_point] < 0) return std::nullopt;
    bytes += static_cast<char>(kByteOf[code_point]);
    i += lead < 0x80 ? 1 : 2;
  }
  return bytes;
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
      token.bytes = BytesOf(texts[i]).value_or(token.bytes);
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

}  // namespace

absl::StatusOr<Vocabulary> LoadVocabulary(const GgufFile& file) {
  ASSIGN_OR_RETURN(const std::string_view model, file.GetString("tokenizer.ggml.model"));
  if (model != "gpt2") {
    return absl::InvalidArgumentError(
        fmt::format("{}: tokenizer.ggml.model is \"{}\"; Penstock knows byte-level BPE (\"gpt2\") "
                    "alone: serve a model that has one",
                    file.path(), model));
  }
  ASSIGN_OR_RETURN(const auto texts, file.GetArray<std::string_view>("tokenizer.ggml.tokens"));
  Vocabulary vocabulary;
  RETURN_IF_ERROR(LoadTokens(file, texts, &vocabulary));

  std::unordered_map<std::string_view, int32_t> ids;
  ids.reserve(texts.size());
  vocabulary.byte_ids.fill(-1);
  for (size_t i = 0; i < texts.size(); ++i) {
    if (!ids.emplace(texts[i], static_cast<int32_t>(i)).second) {
      return Bad(file, fmt::format("tokens {} and {} are the same", ids[texts[i]], i));
    }
    const Token& token = vocabulary.tokens[i];
    const bool is_byte = token.kind != TokenKind::kControl &&
                         token.kind != TokenKind::kUserDefined && token.bytes.size() == 1;
    if (is_byte)
      vocabulary.byte_ids[static_cast<uint8_t>(token.bytes[0])] = static_cast<int32_t>(i);
  }
  RETURN_IF_ERROR(LoadMerges(file, ids, &vocabulary));
  RETURN_IF_ERROR(LoadSpecialIds(file, &vocabulary));
  return vocabulary;
}

}  // namespace penstock::router
