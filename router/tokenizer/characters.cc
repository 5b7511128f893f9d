#include "router/tokenizer/characters.h"

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "router/tokenizer/regex.h"
#include "router/tokenizer/utf8.h"

namespace penstock::router {
namespace {

// The patterns are constants: they compile or the program is wrong.
Regex Compiled(std::string_view pattern) {
  absl::StatusOr<Regex> regex = Regex::Compile(pattern);
  if (!regex.ok()) std::abort();
  return *std::move(regex);
}

size_t LastCharacter(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xc0) == 0x80) --at;
  return at;
}

// Of one character.
bool IsSpace(std::string_view character) {
  static const Regex kSpace = Compiled("[" PENSTOCK_WHITE_SPACE "]");
  return kSpace.Find(character, 0).has_value();
}

bool IsWord(std::string_view character) {
  static const Regex kWord = Compiled(R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}])");
  return kWord.Find(character, 0).has_value();
}

}  // namespace

std::string_view WithoutTrailingSpace(std::string_view text) {
  while (!text.empty()) {
    const size_t last = LastCharacter(text);
    if (!IsSpace(text.substr(last))) break;
    text = text.substr(0, last);
  }
  return text;
}

std::string_view WithoutLeadingSpace(std::string_view text) {
  while (!text.empty()) {
    const size_t length = NextUtf8(text).length;
    if (!IsSpace(text.substr(0, length))) break;
    text.remove_prefix(length);
  }
  return text;
}

bool EndsWithWordCharacter(std::string_view text) {
  return !text.empty() && IsWord(text.substr(LastCharacter(text)));
}

bool StartsWithWordCharacter(std::string_view text) {
  return !text.empty() && IsWord(text.substr(0, NextUtf8(text).length));
}

}  // namespace penstock::router
