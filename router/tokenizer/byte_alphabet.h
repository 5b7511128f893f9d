// GPT-2's alphabet for bytes, in which byte-level vocabularies are written: bytes that are
// printable in Latin-1 stand for themselves, the others, in order, are U+0100 and up. Source:
// Radford et al. 2019, the code of GPT-2 (bytes_to_unicode).
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace penstock::router {

// The raw bytes that a token's text stands for, nullopt if it isn't in the alphabet.
std::optional<std::string> BytesOfText(std::string_view text);

}  // namespace penstock::router
