// Splits text into words: merges never cross a word's border. A list of steps, as in
// tokenizer.json; a GGUF file names a family of models, whose steps are known here.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "router/tokenizer/regex.h"

namespace penstock::router {

// Cuts each piece where the pattern matches.
struct SplitStep {
  // What becomes of the matches. As tokenizer.json calls them.
  enum class Behavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };

  std::string pattern;  // PCRE2's language
  Behavior behavior = Behavior::kIsolated;
  bool invert = false;  // what lies between the matches counts as the matches
};

// Replaces a text, which isn't empty, in each piece.
struct ReplaceStep {
  std::string from;
  std::string to;
};

// Puts a text before each piece that does not begin with it.
struct PrefixStep {
  std::string prefix;
  bool first_only = false;  // before the piece that begins the text alone
};

using PreTokenizerStep = std::variant<SplitStep, ReplaceStep, PrefixStep>;

// What `tokenizer.ggml.pre` stands for.
struct PreTokenizerFamily {
  std::string_view name;  // as in the GGUF
  std::string_view pattern;
  bool nfc;            // text is brought into Unicode's normal form C first
  bool ignore_merges;  // a word that is a token is taken as it is
  bool adds_bos;       // where the GGUF doesn't say
};

// InvalidArgument, with the names known, if there is none.
absl::StatusOr<const PreTokenizerFamily*> FindPreTokenizerFamily(std::string_view name);

// GPT-2's words, which tokenizer.json calls ByteLevel with use_regex.
extern const std::string_view kGpt2Pattern;

// Immutable.
class PreTokenizer {
 public:
  // InvalidArgument if a pattern isn't valid.
  static absl::StatusOr<std::unique_ptr<PreTokenizer>> Create(std::vector<PreTokenizerStep> steps);

  // Calls on_word for each word of `text`, valid UTF-8, in order; none is empty. `at_start`: the
  // text is the beginning of what a client gave.
  void Split(std::string_view text, bool at_start,
             absl::FunctionRef<void(std::string_view)> on_word) const;

 private:
  using OnPiece = absl::FunctionRef<void(std::string_view)>;
  struct CompiledSplit {
    Regex regex;
    SplitStep::Behavior behavior;
    bool invert;
  };
  using Step = std::variant<CompiledSplit, ReplaceStep, PrefixStep>;

  PreTokenizer() = default;
  void Run(size_t step, std::string_view text, bool at_start, OnPiece on_word) const;
  static void SplitPieces(const CompiledSplit& split, std::string_view text, OnPiece on_piece);

  std::vector<Step> steps_;
};

}  // namespace penstock::router
