// UTF-8 by the Unicode standard, table 3-7 (well-formed sequences). Broken input is replaced as the
// standard recommends ("maximal subparts"), which is what Python's errors="replace" does: each
// longest beginning of a well-formed sequence, or else each single byte, becomes one U+FFFD.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace penstock::router {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

enum class Utf8Kind {
  kValid,       // a whole character
  kInvalid,     // can't become a character, whatever follows
  kIncomplete,  // the text ends inside what may be a character
};

struct Utf8Unit {
  Utf8Kind kind;
  size_t length;  // bytes, at least 1
};

// The first character, or piece of a broken one, of `text`, which isn't empty.
Utf8Unit NextUtf8(std::string_view text);

bool IsValidUtf8(std::string_view text);

// Each broken or incomplete piece becomes U+FFFD.
std::string ReplaceInvalidUtf8(std::string_view text);

// Appends to `out` all of `text` but an incomplete character at its end, with U+FFFD for each
// broken piece. Returns the number of bytes of `text` used: all, or up to three fewer.
size_t AppendUtf8(std::string_view text, std::string* out);

}  // namespace penstock::router
