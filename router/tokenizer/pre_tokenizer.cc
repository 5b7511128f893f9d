#include "router/tokenizer/pre_tokenizer.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "common/status.h"
#include "router/tokenizer/characters.h"
#include "router/tokenizer/normalizer.h"
#include "router/tokenizer/utf8.h"

namespace penstock::router {
namespace {

#define WS PENSTOCK_WHITE_SPACE

constexpr std::string_view kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^)" WS
                                   R"(\p{L}\p{N}]+|[)" WS R"(]+(?![^)" WS R"(])|[)" WS R"(]+)";

// Digits(individual_digits) and then GPT-2's split of the pieces, in one pattern: a number is its
// own word, and white space before one isn't followed by anything, as far as GPT-2's look-ahead can
// see.
constexpr std::string_view kSmollm =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^)" WS R"(\p{L}\p{N}]+|[)" WS R"(]+(?![^)" WS
    R"(\p{N}])|[)" WS R"(]+)";

#define LLAMA3_PATTERN(numbers)                                                     \
  R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)" numbers R"(| ?[^)" WS \
  R"(\p{L}\p{N}]+[\r\n]*|[)" WS R"(]*[\r\n]+|[)" WS R"(]+(?![^)" WS R"(])|[)" WS R"(]+)"

constexpr std::string_view kLlama3 = LLAMA3_PATTERN(R"(\p{N}{1,3})");
constexpr std::string_view kQwen2 = LLAMA3_PATTERN(R"(\p{N})");

constexpr PreTokenizerFamily kFamilies[] = {
    {"gpt-2", kGpt2, false, false, false},       {"smollm", kSmollm, false, false, false},
    {"starcoder", kSmollm, false, false, false}, {"refact", kSmollm, false, false, false},
    {"llama-bpe", kLlama3, false, true, true},   {"llama3", kLlama3, false, true, true},
    {"llama-v3", kLlama3, false, true, true},    {"qwen2", kQwen2, true, false, false},
};

// Calls on_piece(begin, end, is_match) for the matches and for what lies between them, in order.
// Together they are `text`. An empty match cuts, but at the end of the match before it.
template <typename OnPiece>
void ForMatches(const Regex& regex, std::string_view text, OnPiece on_piece) {
  size_t done = 0;
  std::optional<size_t> last_end;
  for (size_t from = 0; from <= text.size();) {
    const std::optional<Regex::Match> match = regex.Find(text, from);
    if (!match.has_value()) break;
    if (match->begin == match->end && last_end == match->end) {
      if (from == text.size()) break;
      from += NextUtf8(text.substr(from)).length;
      continue;
    }
    if (match->begin > done) on_piece(done, match->begin, false);
    if (match->end > match->begin) on_piece(match->begin, match->end, true);
    done = from = match->end;
    last_end = match->end;
  }
  if (done < text.size()) on_piece(done, text.size(), false);
}

struct Piece {
  size_t begin;
  size_t end;
  bool is_match;
};

// Joins pieces as the behaviour says: Contiguous neighbours of one kind; the others a match with
// the piece before or after it, unless that is a match too.
std::vector<Piece> Joined(std::vector<Piece> pieces, SplitStep::Behavior behavior) {
  using Behavior = SplitStep::Behavior;
  const bool backwards = behavior == Behavior::kMergedWithNext;
  if (backwards) std::reverse(pieces.begin(), pieces.end());
  std::vector<Piece> joined;
  bool previous = false;
  for (const Piece& piece : pieces) {
    const bool joins = behavior == Behavior::kContiguous ? piece.is_match == previous
                                                         : piece.is_match && !previous;
    previous = piece.is_match;
    if (!joins || joined.empty()) {
      joined.push_back(piece);
    } else {
      joined.back().begin = std::min(joined.back().begin, piece.begin);
      joined.back().end = std::max(joined.back().end, piece.end);
    }
  }
  if (backwards) std::reverse(joined.begin(), joined.end());
  return joined;
}

}  // namespace

const std::string_view kGpt2Pattern = kGpt2;

absl::StatusOr<const PreTokenizerFamily*> FindPreTokenizerFamily(std::string_view name) {
  std::string known;
  for (const PreTokenizerFamily& family : kFamilies) {
    if (family.name == name) return &family;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", family.name);
  }
  return InvalidArgument(
      "tokenizer.ggml.pre is \"{}\", a pre-tokeniser that Penstock doesn't know: serve a model "
      "with one of {}",
      name, known);
}

absl::StatusOr<std::unique_ptr<PreTokenizer>> PreTokenizer::Create(
    std::vector<PreTokenizerStep> steps) {
  std::unique_ptr<PreTokenizer> result(new PreTokenizer());
  for (PreTokenizerStep& step : steps) {
    if (const auto* split = std::get_if<SplitStep>(&step)) {
      ASSIGN_OR_RETURN(Regex regex, Regex::Compile(split->pattern));
      result->steps_.emplace_back(CompiledSplit{std::move(regex), split->behavior, split->invert});
    } else if (auto* replace = std::get_if<ReplaceStep>(&step)) {
      result->steps_.emplace_back(std::move(*replace));
    } else {
      result->steps_.emplace_back(std::get<PrefixStep>(std::move(step)));
    }
  }
  return result;
}

void PreTokenizer::Split(std::string_view text, bool at_start, OnPiece on_word) const {
  Run(0, text, at_start, on_word);
}

void PreTokenizer::Run(size_t step, std::string_view text, bool at_start, OnPiece on_word) const {
  if (text.empty()) return;
  if (step == steps_.size()) return on_word(text);
  if (const auto* split = std::get_if<CompiledSplit>(&steps_[step])) {
    SplitPieces(*split, text, [&](std::string_view piece) {
      Run(step + 1, piece, at_start && piece.data() == text.data(), on_word);
    });
  } else if (const auto* replace = std::get_if<ReplaceStep>(&steps_[step])) {
    Run(step + 1, ReplaceAll(text, replace->from, replace->to), at_start, on_word);
  } else {
    const auto& step_prefix = std::get<PrefixStep>(steps_[step]);
    const bool applies =
        (at_start || !step_prefix.first_only) && !text.starts_with(step_prefix.prefix);
    if (!applies) return Run(step + 1, text, at_start, on_word);
    Run(step + 1, step_prefix.prefix + std::string(text), at_start, on_word);
  }
}

void PreTokenizer::SplitPieces(const CompiledSplit& split, std::string_view text,
                               OnPiece on_piece) {
  using Behavior = SplitStep::Behavior;
  if (split.behavior == Behavior::kIsolated || split.behavior == Behavior::kRemoved) {
    const bool all = split.behavior == Behavior::kIsolated;
    ForMatches(split.regex, text, [&](size_t begin, size_t end, bool is_match) {
      if (all || is_match == split.invert) on_piece(text.substr(begin, end - begin));
    });
    return;
  }
  std::vector<Piece> pieces;
  ForMatches(split.regex, text, [&](size_t begin, size_t end, bool is_match) {
    pieces.push_back({begin, end, is_match != split.invert});
  });
  for (const Piece& piece : Joined(std::move(pieces), split.behavior)) {
    on_piece(text.substr(piece.begin, piece.end - piece.begin));
  }
}

}  // namespace penstock::router
