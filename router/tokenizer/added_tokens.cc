#include "router/tokenizer/added_tokens.h"

#include <algorithm>
#include <utility>

#include "router/tokenizer/characters.h"

namespace penstock::router {

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::erase_if(tokens_, [](const AddedToken& token) { return token.content.empty(); });
  std::stable_sort(tokens_.begin(), tokens_.end(),
                   [](const AddedToken& a, const AddedToken& b) { return a.content < b.content; });
  for (const AddedToken& token : tokens_) {
    first_bytes_.set(static_cast<uint8_t>(token.content[0]));
  }
}

const AddedToken* AddedTokens::LongestAt(std::string_view text, size_t begin) const {
  const AddedToken* longest = nullptr;
  // The tokens that begin with text[begin .. begin + depth): a range that narrows byte by byte.
  auto first = tokens_.begin();
  auto last = tokens_.end();
  for (size_t depth = 0; begin + depth < text.size() && first != last; ++depth) {
    const auto byte = static_cast<uint8_t>(text[begin + depth]);
    const auto byte_at = [depth](const AddedToken& token) -> int {
      return token.content.size() > depth ? static_cast<uint8_t>(token.content[depth]) : -1;
    };
    first = std::partition_point(first, last, [&](const auto& t) { return byte_at(t) < byte; });
    last = std::partition_point(first, last, [&](const auto& t) { return byte_at(t) <= byte; });
    // The shortest of the range comes first: it is whole if it ends here.
    if (first != last && first->content.size() == depth + 1) longest = &*first;
  }
  return longest;
}

void AddedTokens::Split(std::string_view text, bool parse_special,
                        absl::FunctionRef<void(std::string_view)> on_text,
                        absl::FunctionRef<void(int32_t)> on_token) const {
  size_t done = 0;  // of the text handed out
  for (size_t at = 0; at < text.size();) {
    const AddedToken* token =
        first_bytes_[static_cast<uint8_t>(text[at])] ? LongestAt(text, at) : nullptr;
    if (token == nullptr) {
      ++at;
      continue;
    }
    size_t begin = at;
    size_t end = at + token->content.size();
    at = end;
    if (token->special && !parse_special) continue;
    if (token->single_word && (EndsWithWordCharacter(text.substr(0, begin)) ||
                               StartsWithWordCharacter(text.substr(end)))) {
      continue;
    }
    if (token->lstrip) begin = std::max(WithoutTrailingSpace(text.substr(0, begin)).size(), done);
    if (token->rstrip) end = text.size() - WithoutLeadingSpace(text.substr(end)).size();
    if (begin > done) on_text(text.substr(done, begin - done));
    on_token(token->id);
    done = end;
  }
  if (done < text.size()) on_text(text.substr(done));
}

}  // namespace penstock::router
