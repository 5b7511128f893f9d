#include "router/tokenizer/added_tokens.h"

#include <algorithm>

namespace penstock::router {

AddedTokens::AddedTokens(const Vocabulary& vocabulary, bool with_control) {
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    const Token& token = vocabulary.tokens[id];
    const bool added = token.kind == TokenKind::kUserDefined ||
                       (with_control && token.kind == TokenKind::kControl);
    if (!added || token.bytes.empty()) continue;
    entries_.push_back({token.bytes, static_cast<int32_t>(id)});
    first_bytes_.set(static_cast<uint8_t>(token.bytes[0]));
  }
  std::sort(entries_.begin(), entries_.end(),
            [](const Entry& a, const Entry& b) { return a.text < b.text; });
}

AddedTokens::Match AddedTokens::LongestAt(std::string_view text, size_t begin) const {
  Match longest{begin, begin, -1};
  // The entries that begin with text[begin .. begin + depth): a range that narrows byte by byte.
  auto first = entries_.begin();
  auto last = entries_.end();
  for (size_t depth = 0; begin + depth < text.size() && first != last; ++depth) {
    const auto byte = static_cast<uint8_t>(text[begin + depth]);
    const auto byte_at = [depth](const Entry& entry) -> int {
      return entry.text.size() > depth ? static_cast<uint8_t>(entry.text[depth]) : -1;
    };
    first = std::partition_point(first, last, [&](const Entry& e) { return byte_at(e) < byte; });
    last = std::partition_point(first, last, [&](const Entry& e) { return byte_at(e) <= byte; });
    // The shortest of the range comes first: it is whole if it ends here.
    if (first != last && first->text.size() == depth + 1) {
      longest = {begin, begin + depth + 1, first->id};
    }
  }
  return longest;
}

AddedTokens::Match AddedTokens::Find(std::string_view text, size_t from) const {
  for (size_t i = from; i < text.size(); ++i) {
    if (!first_bytes_[static_cast<uint8_t>(text[i])]) continue;
    const Match match = LongestAt(text, i);
    if (match.end > match.begin) return match;
  }
  return {text.size(), text.size(), -1};
}

}  // namespace penstock::router
