// Unicode's classes of characters as far as added tokens ask for them.
#pragma once

#include <string_view>

namespace penstock::router {

// Unicode's White_Space, for a PCRE2 character class. PCRE2's own \s has U+180E (Mongolian vowel
// separator) as well.
#define PENSTOCK_WHITE_SPACE \
  R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})"

// `text`, valid UTF-8, without the white space at its end, or at its beginning.
std::string_view WithoutTrailingSpace(std::string_view text);
std::string_view WithoutLeadingSpace(std::string_view text);

// Whether the last, or first, character is one of a word (UTS #18's \w).
bool EndsWithWordCharacter(std::string_view text);
bool StartsWithWordCharacter(std::string_view text);

}  // namespace penstock::router
