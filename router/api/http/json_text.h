// Writes JSON by hand, for what is written once a token.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <iterator>
#include <string>
#include <string_view>

namespace penstock::router {

// Appends `text`, valid UTF-8, as a JSON string with its quotes.
inline void AppendJsonString(std::string_view text, std::string* out) {
  out->push_back('"');
  size_t begin = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const unsigned char c = static_cast<unsigned char>(text[i]);
    if (c >= 0x20 && c != '"' && c != '\\') [[likely]]
      continue;
    out->append(text.substr(begin, i - begin));
    begin = i + 1;
    switch (c) {
      case '"':
        out->append("\\\"");
        break;
      case '\\':
        out->append("\\\\");
        break;
      case '\n':
        out->append("\\n");
        break;
      case '\r':
        out->append("\\r");
        break;
      case '\t':
        out->append("\\t");
        break;
      default:
        fmt::format_to(std::back_inserter(*out), "\\u{:04x}", c);
    }
  }
  out->append(text.substr(begin));
  out->push_back('"');
}

inline std::string JsonString(std::string_view text) {
  std::string out;
  AppendJsonString(text, &out);
  return out;
}

// JSON knows no infinity: what an impossible token has becomes -9999, as vLLM writes it.
inline void AppendLogprob(float logprob, std::string* out) {
  fmt::format_to(std::back_inserter(*out), "{}", std::isfinite(logprob) ? logprob : -9999.0f);
}

}  // namespace penstock::router
