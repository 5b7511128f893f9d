#include "router/tokenizer/normalizer.h"

#include <utf8proc.h>

#include <cstdint>
#include <cstdlib>

namespace penstock::router {
namespace {

// `text`, valid UTF-8, in Unicode's normal form C.
std::string ToNfc(std::string_view text) {
  utf8proc_uint8_t* normalised = nullptr;
  const utf8proc_ssize_t size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &normalised,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  if (size < 0) return std::string(text);  // out of memory, or more than 2 GiB
  std::string result(reinterpret_cast<const char*>(normalised), static_cast<size_t>(size));
  std::free(normalised);
  return result;
}

bool IsAscii(std::string_view text) {
  for (char c : text) {
    if (static_cast<uint8_t>(c) >= 0x80) return false;
  }
  return true;
}

}  // namespace

std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to) {
  std::string result;
  result.reserve(text.size());
  size_t done = 0;
  for (size_t at; (at = text.find(from, done)) != std::string_view::npos; done = at + from.size()) {
    result.append(text, done, at - done).append(to);
  }
  return result.append(text, done);
}

std::string_view Normalizer::Apply(std::string_view text, std::string* storage) const {
  for (const NormalizerStep& step : steps_) {
    switch (step.kind) {
      case NormalizerStep::Kind::kNfc:
        if (IsAscii(text)) continue;
        *storage = ToNfc(text);
        break;
      case NormalizerStep::Kind::kPrepend:
        if (text.empty()) continue;
        *storage = step.text + std::string(text);
        break;
      case NormalizerStep::Kind::kReplace:
        *storage = ReplaceAll(text, step.from, step.text);
        break;
    }
    text = *storage;
  }
  return text;
}

}  // namespace penstock::router
