#include "router/tokenizer/hf_tokenizer.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <optional>
#include <string_view>
#include <utility>

#include "common/formats/json_file.h"
#include "common/status.h"
#include "router/tokenizer/byte_alphabet.h"
#include "router/tokenizer/hf_steps.h"
#include "router/tokenizer/hf_tokenizer_config.h"
#include "router/tokenizer/utf8.h"

namespace penstock::router {
namespace {

using nlohmann::json;

constexpr int64_t kMaxTokens = int64_t{1} << 22;

// Reads a tokenizer.json's model and added tokens.
class VocabularyReader {
 public:
  VocabularyReader(const JsonKeys& file, const HfDecoder& decoder)
      : file_(file), decoder_(decoder) {}

  absl::Status Read(TokenizerDescription* description) {
    const json* model = file_.Find("model");
    if (model == nullptr) return file_.Missing("model");
    const JsonKeys keys(*model, file_.what(), "model.");
    RETURN_IF_ERROR(CheckModel(keys));
    Vocabulary& vocabulary = description->vocabulary;
    vocabulary.byte_level = decoder_.byte_level;
    RETURN_IF_ERROR(ReadTokens(keys, &vocabulary));
    RETURN_IF_ERROR(ReadUnknown(keys, &vocabulary));
    RETURN_IF_ERROR(ReadMerges(keys, &vocabulary));
    return ReadAddedTokens(description);
  }

  // -1 if no token has this text.
  int32_t IdOf(std::string_view text) const {
    const auto found = ids_.find(text);
    return found == ids_.end() ? -1 : found->second;
  }

 private:
  absl::Status Bad(const std::string& problem) const {
    return InvalidArgument("{}: {}: download the model again", file_.what(), problem);
  }

  absl::Status CheckModel(const JsonKeys& model) {
    ASSIGN_OR_RETURN(const auto type, model.FindString("type"));
    // Old files name no type; a BPE model alone has merges.
    if (type.has_value() ? *type != "BPE" : model.Find("merges") == nullptr) {
      return Unimplemented(
          "{}: \"model.type\" is {}; Penstock knows BPE alone: serve a model that "
          "has one",
          file_.what(), type.value_or("missing"));
    }
    ASSIGN_OR_RETURN(const auto dropout, model.FindNumber("dropout"));
    if (dropout.value_or(0) != 0) {
      return Unimplemented("{}: \"model.dropout\" is {}: set it to null", file_.what(), *dropout);
    }
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      ASSIGN_OR_RETURN(const auto affix, model.FindString(key));
      if (affix.value_or("").empty()) continue;
      return Unimplemented("{}: \"model.{}\" is \"{}\"; Penstock knows BPE without it",
                           file_.what(), key, *affix);
    }
    return absl::OkStatus();
  }

  // Gives the token of this id its text. Each id has one text, and each text one id.
  absl::Status Add(const std::string& text, int64_t id, std::string bytes, TokenKind kind,
                   Vocabulary* vocabulary) {
    if (id < 0 || id >= kMaxTokens) {
      return Bad(
          fmt::format("the token \"{}\" has the id {}, outside 0..{}", text, id, kMaxTokens - 1));
    }
    std::vector<Token>& tokens = vocabulary->tokens;
    const auto index = static_cast<size_t>(id);
    if (index >= tokens.size()) tokens.resize(index + 1, {"", TokenKind::kUnused});
    if (tokens[index].kind != TokenKind::kUnused && IdOf(text) != id) {
      return Bad(fmt::format("the tokens \"{}\" and \"{}\" have the same id, {}",
                             tokens[index].bytes, text, id));
    }
    tokens[index] = {std::move(bytes), kind};
    ids_[text] = static_cast<int32_t>(id);
    return absl::OkStatus();
  }

  // <0x0A>, if tokens like it stand for bytes.
  std::optional<uint8_t> FallbackByte(std::string_view text) const {
    if (decoder_.byte_level || text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') {
      return std::nullopt;
    }
    uint8_t byte = 0;
    const auto [end, error] = std::from_chars(text.data() + 3, text.data() + 5, byte, 16);
    if (error != std::errc() || end != text.data() + 5) return std::nullopt;
    return byte;
  }

  // What a token of the model adds to a text.
  std::string Decoded(const std::string& text) const {
    if (decoder_.byte_level) return BytesOfText(text).value_or(text);
    if (const auto byte = FallbackByte(text); decoder_.byte_fallback && byte.has_value()) {
      return std::string(1, static_cast<char>(*byte));
    }
    std::string result = text;
    for (const ReplaceStep& step : decoder_.replaced) {
      result = ReplaceAll(result, step.from, step.to);
    }
    return result;
  }

  absl::Status ReadTokens(const JsonKeys& model, Vocabulary* vocabulary) {
    const json* entries = model.Find("vocab");
    if (entries == nullptr) return model.Missing("vocab");
    if (!entries->is_object() || entries->empty()) {
      return InvalidArgument("{}: \"model.vocab\" must be an object of ids, not empty",
                             file_.what());
    }
    ASSIGN_OR_RETURN(const auto ignore_merges, model.FindBool("ignore_merges"));
    ASSIGN_OR_RETURN(const auto byte_fallback, model.FindBool("byte_fallback"));
    vocabulary->tokens.reserve(entries->size());
    ids_.reserve(entries->size());
    for (const auto& [text, value] : entries->items()) {
      if (!value.is_number_integer()) {
        return Bad(fmt::format("\"model.vocab\" has no whole number for \"{}\"", text));
      }
      const auto id = value.get<int64_t>();
      RETURN_IF_ERROR(Add(text, id, Decoded(text), TokenKind::kNormal, vocabulary));
      AddSymbol(text, static_cast<int32_t>(id), byte_fallback.value_or(false), vocabulary);
      if (!ignore_merges.value_or(false)) continue;
      const auto word = decoder_.byte_level ? BytesOfText(text) : text;
      if (word.has_value()) vocabulary->whole_words.emplace(*word, static_cast<int32_t>(id));
    }
    return absl::OkStatus();
  }

  // A token that words begin as, before anything is merged.
  void AddSymbol(const std::string& text, int32_t id, bool byte_fallback, Vocabulary* vocabulary) {
    if (decoder_.byte_level) {
      const auto bytes = BytesOfText(text);
      if (bytes.has_value() && bytes->size() == 1) {
        vocabulary->byte_ids[static_cast<uint8_t>((*bytes)[0])] = id;
      }
    } else if (!text.empty() && NextUtf8(text).length == text.size()) {
      vocabulary->character_ids.emplace(text, id);
    } else if (const auto byte = FallbackByte(text); byte_fallback && byte.has_value()) {
      vocabulary->byte_ids[*byte] = id;
    }
  }

  absl::Status ReadUnknown(const JsonKeys& model, Vocabulary* vocabulary) {
    ASSIGN_OR_RETURN(const auto unknown, model.FindString("unk_token"));
    ASSIGN_OR_RETURN(const auto fuse, model.FindBool("fuse_unk"));
    vocabulary->fuse_unk = fuse.value_or(false);
    if (!unknown.has_value()) return absl::OkStatus();
    vocabulary->unk_id = IdOf(*unknown);
    if (vocabulary->unk_id >= 0) return absl::OkStatus();
    return Bad(
        fmt::format("\"model.unk_token\" is \"{}\", which isn't in \"model.vocab\"", *unknown));
  }

  absl::Status ReadMerges(const JsonKeys& model, Vocabulary* vocabulary) {
    const json* merges = model.Find("merges");
    if (merges == nullptr) return model.Missing("merges");
    if (!merges->is_array()) return Bad("\"model.merges\" is not a list");
    vocabulary->merges.reserve(merges->size());
    std::string merged;
    for (size_t rank = 0; rank < merges->size(); ++rank) {
      std::string_view left;
      std::string_view right;
      if (!SplitMerge((*merges)[rank], &left, &right)) {
        return Bad(fmt::format("\"model.merges[{}]\" is not two tokens", rank));
      }
      merged.assign(left).append(right);
      const int32_t left_id = IdOf(left);
      const int32_t right_id = IdOf(right);
      const int32_t merged_id = IdOf(merged);
      if (left_id < 0 || right_id < 0 || merged_id < 0) {
        return Bad(fmt::format(
            "\"model.merges[{}]\" names or makes a token that isn't in \"model.vocab\"", rank));
      }
      vocabulary->merges[Vocabulary::MergeKey(left_id, right_id)] = {
          .rank = static_cast<int32_t>(rank), .merged_id = merged_id};
    }
    return absl::OkStatus();
  }

  // ["a", "b"], or, in files of old, "a b". The views are of `merge`.
  static bool SplitMerge(const json& merge, std::string_view* left, std::string_view* right) {
    if (merge.is_string()) {
      const std::string_view text = merge.get_ref<const std::string&>();
      const size_t space = text.find(' ');
      if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) {
        return false;
      }
      *left = text.substr(0, space);
      *right = text.substr(space + 1);
      return true;
    }
    if (!merge.is_array() || merge.size() != 2 || !merge[0].is_string() || !merge[1].is_string()) {
      return false;
    }
    *left = merge[0].get_ref<const std::string&>();
    *right = merge[1].get_ref<const std::string&>();
    return true;
  }

  absl::Status ReadAddedTokens(TokenizerDescription* description) {
    const json* entries = file_.Find("added_tokens");
    if (entries == nullptr) return absl::OkStatus();
    if (!entries->is_array()) return file_.WrongType("added_tokens", "a list");
    const Normalizer normalizer(description->normalizer);
    for (size_t i = 0; i < entries->size(); ++i) {
      const JsonKeys keys((*entries)[i], file_.what(), fmt::format("added_tokens[{}].", i));
      ASSIGN_OR_RETURN(const AddedToken token, ReadAddedToken(keys));
      if (token.content.empty()) continue;
      const int32_t known = IdOf(token.content);
      if (known >= 0 && known != token.id) {
        return Bad(
            fmt::format("the token \"{}\" has two ids, {} and {}", token.content, known, token.id));
      }
      const TokenKind kind = token.special ? TokenKind::kControl : TokenKind::kUserDefined;
      // The reference shows one that is found in the normalised text as it stands there. Byte-level
      // ones stay as they are: the reference would take their Latin-1 letters for bytes.
      std::string storage;
      std::string bytes =
          token.normalized ? std::string(normalizer.Apply(token.content, &storage)) : token.content;
      if (!decoder_.byte_level) bytes = Decoded(bytes);
      RETURN_IF_ERROR(
          Add(token.content, token.id, std::move(bytes), kind, &description->vocabulary));
      description->added_tokens.push_back(token);
    }
    return absl::OkStatus();
  }

  static absl::StatusOr<AddedToken> ReadAddedToken(const JsonKeys& keys) {
    AddedToken token;
    ASSIGN_OR_RETURN(token.content, keys.GetString("content"));
    ASSIGN_OR_RETURN(const int64_t id, keys.GetInt("id"));
    if (id < 0 || id >= kMaxTokens) return keys.WrongType("id", "a token's id");
    token.id = static_cast<int32_t>(id);
    const std::pair<const char*, bool*> flags[] = {{"special", &token.special},
                                                   {"lstrip", &token.lstrip},
                                                   {"rstrip", &token.rstrip},
                                                   {"single_word", &token.single_word}};
    for (const auto& [key, flag] : flags) {
      ASSIGN_OR_RETURN(const auto value, keys.FindBool(key));
      *flag = value.value_or(false);
    }
    ASSIGN_OR_RETURN(const auto normalized, keys.FindBool("normalized"));
    token.normalized = normalized.value_or(!token.special);
    return token;
  }

  const JsonKeys& file_;
  const HfDecoder& decoder_;
  IdByText ids_;  // of all tokens, by their text in the file
};

// BOS and the tokens that end an answer.
void SetSpecialIds(const VocabularyReader& reader, const HfConfig& config,
                   const HfTokenizerConfig& tokenizer_config, Vocabulary* vocabulary) {
  const auto named = [&](const char* name) {
    const auto text = tokenizer_config.special_tokens.find(name);
    return text == tokenizer_config.special_tokens.end() ? -1 : reader.IdOf(text->second);
  };
  vocabulary->bos_id = named("bos_token");
  if (vocabulary->bos_id < 0) vocabulary->bos_id = config.bos_token_id.value_or(-1);
  std::vector<int32_t>& ends = vocabulary->end_ids;
  ends = config.eos_token_ids;
  const int32_t eos = named("eos_token");
  if (eos >= 0 && std::find(ends.begin(), ends.end(), eos) == ends.end()) ends.push_back(eos);
  if (!ends.empty()) vocabulary->eos_id = ends.front();
}

}  // namespace

absl::StatusOr<TokenizerDescription> ReadHfTokenizer(const std::string& dir,
                                                     const HfConfig& config) {
  const std::string path = dir + "/tokenizer.json";
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) {
    if (std::filesystem::exists(dir + "/tokenizer.model", ignored)) {
      return Unimplemented(
          "{}: there is a tokenizer.model but no tokenizer.json: let transformers write one "
          "(AutoTokenizer.from_pretrained(folder).save_pretrained(folder))",
          dir);
    }
    return NotFound("{}: there is no tokenizer.json: download the model's tokeniser too", dir);
  }
  ASSIGN_OR_RETURN(const json object, ReadJsonFile(path));
  if (!object.is_object()) return InvalidArgument("{}: it is not a JSON object", path);
  const JsonKeys file(object, path);
  ASSIGN_OR_RETURN(const HfTokenizerConfig tokenizer_config, ReadHfTokenizerConfig(dir));

  TokenizerDescription description;
  ASSIGN_OR_RETURN(description.normalizer, ReadHfNormalizer(file));
  ASSIGN_OR_RETURN(HfPreTokenizer pre_tokenizer, ReadHfPreTokenizer(file));
  description.pre_tokenizer = std::move(pre_tokenizer.steps);
  ASSIGN_OR_RETURN(const HfDecoder decoder, ReadHfDecoder(file, pre_tokenizer.byte_level));
  description.num_leading_spaces = decoder.num_leading_spaces;
  VocabularyReader reader(file, decoder);
  RETURN_IF_ERROR(reader.Read(&description));
  Vocabulary& vocabulary = description.vocabulary;
  SetSpecialIds(reader, config, tokenizer_config, &vocabulary);

  if (tokenizer_config.add_bos_token.has_value() || tokenizer_config.add_eos_token.has_value()) {
    const int32_t eos = vocabulary.eos_id;
    if (tokenizer_config.add_bos_token.value_or(false) && vocabulary.bos_id >= 0) {
      description.prefix_ids = {vocabulary.bos_id};
    }
    if (tokenizer_config.add_eos_token.value_or(false) && eos >= 0) description.suffix_ids = {eos};
  } else {
    ASSIGN_OR_RETURN(HfPostProcessor processor, ReadHfPostProcessor(file));
    description.prefix_ids = std::move(processor.prefix_ids);
    description.suffix_ids = std::move(processor.suffix_ids);
  }
  for (const int32_t id : description.prefix_ids) {
    if (static_cast<size_t>(id) < vocabulary.tokens.size()) continue;
    return InvalidArgument("{}: \"post_processor\" has the id {}, but there are {} tokens", path,
                           id, vocabulary.tokens.size());
  }
  return description;
}

}  // namespace penstock::router
