// A PCRE2 pattern, compiled with its JIT; and the translation of tokenizer.json's patterns, which
// are Oniguruma's, into PCRE2's language.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace penstock::router {

// Thread-safe.
class Regex {
 public:
  // `pattern` in PCRE2's language, with Unicode's properties; ^ and $ are the borders of lines.
  // InvalidArgument if it isn't valid.
  static absl::StatusOr<Regex> Compile(std::string_view pattern);

  struct Match {
    size_t begin;
    size_t end;
  };
  // The first match at or after `from`, in valid UTF-8.
  std::optional<Match> Find(std::string_view text, size_t from) const;

 private:
  struct Compiled;  // PCRE2's objects
  std::shared_ptr<const Compiled> compiled_;
};

// The same pattern for PCRE2. Oniguruma's (in Ruby's syntax) differs in what \s, \w and \v are, in
// ranges such as {,3}, in \uHHHH. Unimplemented, naming the place, for what has no counterpart here
// or isn't known to mean the same (sets in sets, word borders, back references, options but i).
absl::StatusOr<std::string> PatternFromOniguruma(std::string_view pattern);

// A pattern that matches `text` alone, in either language.
std::string QuotePattern(std::string_view text);

}  // namespace penstock::router
