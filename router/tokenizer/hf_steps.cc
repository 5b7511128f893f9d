#include "router/tokenizer/hf_steps.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <string_view>
#include <utility>

#include "common/status.h"
#include "router/tokenizer/regex.h"

namespace penstock::router {
namespace {

using nlohmann::json;

// One step of a part: an object with a "type".
struct Step {
  JsonKeys keys;
  std::string name;  // of the object, for errors
  std::string type;
};

// The part's steps, whether it is one, a Sequence or null. `list_key` is where a Sequence has them.
absl::Status Collect(const JsonKeys& parent, const std::string& name, std::string_view list_key,
                     const json* part, std::vector<Step>* steps) {
  if (part == nullptr || part->is_null()) return absl::OkStatus();
  if (!part->is_object()) return InvalidArgument("{}: \"{}\" is no object", parent.what(), name);
  JsonKeys keys(*part, parent.what(), name + ".");
  ASSIGN_OR_RETURN(const std::string type, keys.GetString("type"));
  if (type != "Sequence") {
    steps->push_back({std::move(keys), name, type});
    return absl::OkStatus();
  }
  const json* list = keys.Find(list_key);
  if (list == nullptr) return keys.Missing(list_key);
  if (!list->is_array()) return keys.WrongType(list_key, "a list");
  for (size_t i = 0; i < list->size(); ++i) {
    if ((*list)[i].is_object() && (*list)[i].value("type", json()) == "Sequence") {
      return Unimplemented("{}: \"{}.{}[{}]\" is a sequence in a sequence: write it as one",
                           parent.what(), name, list_key, i);
    }
    RETURN_IF_ERROR(
        Collect(parent, fmt::format("{}.{}[{}]", name, list_key, i), list_key, &(*list)[i], steps));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Step>> Steps(const JsonKeys& file, const std::string& name,
                                        std::string_view list_key) {
  std::vector<Step> steps;
  RETURN_IF_ERROR(Collect(file, name, list_key, file.Find(name), &steps));
  return steps;
}

absl::Status UnknownStep(const Step& step, std::string_view known) {
  return Unimplemented("{}: \"{}\" is a {}, which Penstock doesn't know here: it knows {}",
                       step.keys.what(), step.name, step.type, known);
}

// {"String": "..."} or {"Regex": "..."}: exactly one is set.
struct Pattern {
  std::optional<std::string> text;
  std::optional<std::string> regex;
};
absl::StatusOr<Pattern> ReadPattern(const JsonKeys& keys) {
  const json* object = keys.Find("pattern");
  if (object == nullptr) return keys.Missing("pattern");
  const JsonKeys inner(*object, keys.what(), "pattern.");
  Pattern pattern;
  ASSIGN_OR_RETURN(pattern.text, inner.FindString("String"));
  ASSIGN_OR_RETURN(pattern.regex, inner.FindString("Regex"));
  if (pattern.text.has_value() == pattern.regex.has_value()) {
    return keys.WrongType("pattern", "an object with String or Regex");
  }
  return pattern;
}

// A Replace of a normaliser or a decoder, of fixed text.
absl::StatusOr<ReplaceStep> ReadReplace(const JsonKeys& keys) {
  ASSIGN_OR_RETURN(const Pattern pattern, ReadPattern(keys));
  if (!pattern.text.has_value()) {
    return Unimplemented("{}; Penstock replaces fixed text alone",
                         Message(keys.WrongType("pattern", "a String")));
  }
  if (pattern.text->empty()) return keys.WrongType("pattern", "a text that isn't empty");
  ASSIGN_OR_RETURN(std::string content, keys.GetString("content"));
  return ReplaceStep{*pattern.text, std::move(content)};
}

absl::StatusOr<SplitStep> ReadSplit(const JsonKeys& keys) {
  using Behavior = SplitStep::Behavior;
  static constexpr std::pair<std::string_view, Behavior> kBehaviors[] = {
      {"Isolated", Behavior::kIsolated},
      {"Removed", Behavior::kRemoved},
      {"MergedWithPrevious", Behavior::kMergedWithPrevious},
      {"MergedWithNext", Behavior::kMergedWithNext},
      {"Contiguous", Behavior::kContiguous}};
  SplitStep split;
  ASSIGN_OR_RETURN(const Pattern pattern, ReadPattern(keys));
  if (pattern.text.has_value()) {
    split.pattern = QuotePattern(*pattern.text);  // an empty one cuts everywhere
  } else {
    auto translated = PatternFromOniguruma(*pattern.regex);
    const absl::Status compiled =
        translated.ok() ? Regex::Compile(*translated).status() : translated.status();
    if (!compiled.ok()) {
      return absl::Status(compiled.code(), fmt::format("{}: {}", keys.what(), Message(compiled)));
    }
    split.pattern = *std::move(translated);
  }
  ASSIGN_OR_RETURN(const std::string behavior, keys.GetString("behavior"));
  const auto* known = std::find_if(std::begin(kBehaviors), std::end(kBehaviors),
                                   [&](const auto& entry) { return entry.first == behavior; });
  if (known == std::end(kBehaviors)) return keys.WrongType("behavior", "one that Penstock knows");
  split.behavior = known->second;
  ASSIGN_OR_RETURN(const std::optional<bool> invert, keys.FindBool("invert"));
  split.invert = invert.value_or(false);
  return split;
}

absl::StatusOr<SplitStep> ReadDigits(const JsonKeys& keys) {
  ASSIGN_OR_RETURN(const std::optional<bool> individual, keys.FindBool("individual_digits"));
  return SplitStep{.pattern = R"(\p{N})",
                   .behavior = individual.value_or(false) ? SplitStep::Behavior::kIsolated
                                                          : SplitStep::Behavior::kContiguous};
}

absl::Status AddByteLevel(const JsonKeys& keys, std::vector<PreTokenizerStep>* steps) {
  ASSIGN_OR_RETURN(const std::optional<bool> prefix, keys.FindBool("add_prefix_space"));
  ASSIGN_OR_RETURN(const std::optional<bool> use_regex, keys.FindBool("use_regex"));
  if (prefix.value_or(true)) steps->emplace_back(PrefixStep{.prefix = " "});
  if (use_regex.value_or(true)) {
    steps->emplace_back(SplitStep{.pattern = std::string(kGpt2Pattern)});
  }
  return absl::OkStatus();
}

struct Metaspace {
  std::string replacement;
  std::string prepend_scheme;  // always, first or never
  bool split = true;
};
absl::StatusOr<Metaspace> ReadMetaspace(const JsonKeys& keys) {
  Metaspace metaspace;
  ASSIGN_OR_RETURN(metaspace.replacement, keys.GetString("replacement"));
  if (metaspace.replacement.empty()) return keys.WrongType("replacement", "a character");
  ASSIGN_OR_RETURN(const auto old_prefix, keys.FindBool("add_prefix_space"));
  ASSIGN_OR_RETURN(const auto scheme, keys.FindString("prepend_scheme"));
  metaspace.prepend_scheme = scheme.value_or(old_prefix.value_or(true) ? "always" : "never");
  if (metaspace.prepend_scheme != "always" && metaspace.prepend_scheme != "first" &&
      metaspace.prepend_scheme != "never") {
    return keys.WrongType("prepend_scheme", "always, first or never");
  }
  ASSIGN_OR_RETURN(const auto split, keys.FindBool("split"));
  metaspace.split = split.value_or(true);
  return metaspace;
}

absl::Status AddMetaspace(const JsonKeys& keys, std::vector<PreTokenizerStep>* steps) {
  ASSIGN_OR_RETURN(const Metaspace metaspace, ReadMetaspace(keys));
  steps->emplace_back(ReplaceStep{.from = " ", .to = metaspace.replacement});
  if (metaspace.prepend_scheme != "never") {
    steps->emplace_back(PrefixStep{.prefix = metaspace.replacement,
                                   .first_only = metaspace.prepend_scheme == "first"});
  }
  if (metaspace.split) {
    steps->emplace_back(SplitStep{.pattern = QuotePattern(metaspace.replacement),
                                  .behavior = SplitStep::Behavior::kMergedWithNext});
  }
  return absl::OkStatus();
}

// The ids that a TemplateProcessing's special token stands for.
absl::StatusOr<std::vector<int32_t>> TemplateIds(const JsonKeys& keys, const std::string& name) {
  const json* tokens = keys.Find("special_tokens");
  const json* token = tokens == nullptr ? nullptr : JsonKeys(*tokens, "").Find(name);
  const json* ids = token == nullptr ? nullptr : JsonKeys(*token, "").Find("ids");
  if (ids == nullptr) return keys.Missing(fmt::format("special_tokens.{}.ids", name));
  if (!ids->is_array()) return keys.WrongType("special_tokens", "an object of lists of ids");
  std::vector<int32_t> result;
  for (const json& id : *ids) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > INT32_MAX) {
      return keys.WrongType("special_tokens", "an object of lists of ids");
    }
    result.push_back(id.get<int32_t>());
  }
  return result;
}

// What stands around the text in a template for one text.
absl::StatusOr<HfPostProcessor> ReadTemplate(const JsonKeys& keys) {
  const json* pieces = keys.Find("single");
  if (pieces == nullptr) return keys.Missing("single");
  if (!pieces->is_array()) return keys.WrongType("single", "a list");
  HfPostProcessor processor;
  bool text_seen = false;
  for (const json& piece : *pieces) {
    const JsonKeys inner(piece, keys.what(), "post_processor.single[].");
    if (inner.Find("Sequence") != nullptr) {
      if (std::exchange(text_seen, true)) return keys.WrongType("single", "a list with one text");
      continue;
    }
    const json* token = inner.Find("SpecialToken");
    if (token == nullptr) return keys.WrongType("single", "of SpecialToken and Sequence");
    ASSIGN_OR_RETURN(
        const std::string name,
        JsonKeys(*token, keys.what(), "post_processor.single[].SpecialToken.").GetString("id"));
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids, TemplateIds(keys, name));
    std::vector<int32_t>& where = text_seen ? processor.suffix_ids : processor.prefix_ids;
    where.insert(where.end(), ids.begin(), ids.end());
  }
  if (!text_seen) return keys.WrongType("single", "a list with one text");
  return processor;
}

absl::Status AddStrip(const JsonKeys& keys, HfDecoder* decoder) {
  ASSIGN_OR_RETURN(const std::string content, keys.GetString("content"));
  ASSIGN_OR_RETURN(const int64_t start, keys.GetInt("start"));
  ASSIGN_OR_RETURN(const int64_t stop, keys.GetInt("stop"));
  if (content != " " || start < 0 || start > 16 || stop != 0) {
    return Unimplemented("{}; Penstock strips spaces from a text's start alone",
                         Message(keys.WrongType("content", "a step it knows")));
  }
  decoder->num_leading_spaces += static_cast<int>(start);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<NormalizerStep>> ReadHfNormalizer(const JsonKeys& file) {
  using Kind = NormalizerStep::Kind;
  ASSIGN_OR_RETURN(const std::vector<Step> parts, Steps(file, "normalizer", "normalizers"));
  std::vector<NormalizerStep> steps;
  for (const Step& part : parts) {
    if (part.type == "NFC") {
      steps.push_back({.kind = Kind::kNfc});
    } else if (part.type == "Prepend") {
      ASSIGN_OR_RETURN(std::string text, part.keys.GetString("prepend"));
      steps.push_back({.kind = Kind::kPrepend, .text = std::move(text)});
    } else if (part.type == "Replace") {
      ASSIGN_OR_RETURN(ReplaceStep replace, ReadReplace(part.keys));
      steps.push_back(
          {.kind = Kind::kReplace, .text = std::move(replace.to), .from = std::move(replace.from)});
    } else {
      return UnknownStep(part, "NFC, Prepend, Replace and sequences of them");
    }
  }
  return steps;
}

absl::StatusOr<HfPreTokenizer> ReadHfPreTokenizer(const JsonKeys& file) {
  ASSIGN_OR_RETURN(const std::vector<Step> parts, Steps(file, "pre_tokenizer", "pretokenizers"));
  HfPreTokenizer result;
  for (const Step& part : parts) {
    if (result.byte_level) {
      return Unimplemented(
          "{}: \"pre_tokenizer\" has a step after ByteLevel, which must be the "
          "last",
          file.what());
    }
    if (part.type == "Split") {
      ASSIGN_OR_RETURN(SplitStep split, ReadSplit(part.keys));
      result.steps.emplace_back(std::move(split));
    } else if (part.type == "Digits") {
      ASSIGN_OR_RETURN(SplitStep split, ReadDigits(part.keys));
      result.steps.emplace_back(std::move(split));
    } else if (part.type == "ByteLevel") {
      RETURN_IF_ERROR(AddByteLevel(part.keys, &result.steps));
      result.byte_level = true;
    } else if (part.type == "Metaspace") {
      RETURN_IF_ERROR(AddMetaspace(part.keys, &result.steps));
    } else {
      return UnknownStep(part, "Split, Digits, ByteLevel, Metaspace and sequences of them");
    }
  }
  return result;
}

absl::StatusOr<HfPostProcessor> ReadHfPostProcessor(const JsonKeys& file) {
  ASSIGN_OR_RETURN(const std::vector<Step> parts, Steps(file, "post_processor", "processors"));
  HfPostProcessor result;
  bool found = false;
  for (const Step& part : parts) {
    if (part.type == "ByteLevel") continue;  // about offsets alone
    if (part.type != "TemplateProcessing" || std::exchange(found, true)) {
      return UnknownStep(part, "ByteLevel and one TemplateProcessing");
    }
    ASSIGN_OR_RETURN(result, ReadTemplate(part.keys));
  }
  return result;
}

absl::StatusOr<HfDecoder> ReadHfDecoder(const JsonKeys& file, bool byte_level) {
  ASSIGN_OR_RETURN(const std::vector<Step> parts, Steps(file, "decoder", "decoders"));
  HfDecoder decoder;
  decoder.byte_level = byte_level;
  for (const Step& part : parts) {
    if (part.type == "Fuse") continue;
    if (byte_level != (part.type == "ByteLevel")) {
      return UnknownStep(part, byte_level
                                   ? "ByteLevel where the pre_tokenizer has ByteLevel"
                                   : "Replace, ByteFallback, Fuse, Strip, Metaspace and sequences "
                                     "of them where the pre_tokenizer has no ByteLevel");
    }
    if (byte_level) continue;
    if (part.type == "Replace") {
      ASSIGN_OR_RETURN(ReplaceStep replace, ReadReplace(part.keys));
      decoder.replaced.push_back(std::move(replace));
    } else if (part.type == "ByteFallback") {
      decoder.byte_fallback = true;
    } else if (part.type == "Strip") {
      RETURN_IF_ERROR(AddStrip(part.keys, &decoder));
    } else if (part.type == "Metaspace") {
      ASSIGN_OR_RETURN(const Metaspace metaspace, ReadMetaspace(part.keys));
      decoder.replaced.push_back({metaspace.replacement, " "});
      decoder.num_leading_spaces += metaspace.prepend_scheme == "never" ? 0 : 1;
    } else {
      return UnknownStep(part, "Replace, ByteFallback, Fuse, Strip and Metaspace");
    }
  }
  if (parts.empty() && !byte_level) return file.Missing("decoder");
  return decoder;
}

}  // namespace penstock::router
