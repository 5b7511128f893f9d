#include "router/tokenizer/utf8.h"

#include <cstdint>
#include <cstring>

namespace penstock::router {
namespace {

// What a lead byte asks for: the sequence's length and the bounds of its second byte.
struct Lead {
  uint8_t length;  // 0 if no sequence starts so
  uint8_t second_min;
  uint8_t second_max;
};

Lead LeadOf(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xc2) return {0, 0, 0};
  if (byte < 0xe0) return {2, 0x80, 0xbf};
  if (byte == 0xe0) return {3, 0xa0, 0xbf};
  if (byte == 0xed) return {3, 0x80, 0x9f};
  if (byte < 0xf0) return {3, 0x80, 0xbf};
  if (byte == 0xf0) return {4, 0x90, 0xbf};
  if (byte < 0xf4) return {4, 0x80, 0xbf};
  if (byte == 0xf4) return {4, 0x80, 0x8f};
  return {0, 0, 0};
}

// The number of bytes before the first that isn't ASCII.
size_t AsciiPrefix(std::string_view text) {
  size_t i = 0;
  for (; i + 8 <= text.size(); i += 8) {
    uint64_t word;
    std::memcpy(&word, text.data() + i, sizeof(word));
    if ((word & 0x8080808080808080ull) != 0) break;
  }
  while (i < text.size() && static_cast<uint8_t>(text[i]) < 0x80) ++i;
  return i;
}

}  // namespace

Utf8Unit NextUtf8(std::string_view text) {
  const Lead lead = LeadOf(static_cast<uint8_t>(text[0]));
  if (lead.length <= 1) return {lead.length == 1 ? Utf8Kind::kValid : Utf8Kind::kInvalid, 1};
  for (size_t i = 1; i < lead.length; ++i) {
    if (i == text.size()) return {Utf8Kind::kIncomplete, i};
    const auto byte = static_cast<uint8_t>(text[i]);
    const uint8_t min = i == 1 ? lead.second_min : 0x80;
    const uint8_t max = i == 1 ? lead.second_max : 0xbf;
    if (byte < min || byte > max) return {Utf8Kind::kInvalid, i};
  }
  return {Utf8Kind::kValid, lead.length};
}

bool IsValidUtf8(std::string_view text) {
  while (true) {
    text.remove_prefix(AsciiPrefix(text));
    if (text.empty()) return true;
    const Utf8Unit unit = NextUtf8(text);
    if (unit.kind != Utf8Kind::kValid) return false;
    text.remove_prefix(unit.length);
  }
}

size_t AppendUtf8(std::string_view text, std::string* out) {
  size_t used = 0;
  while (used < text.size()) {
    const size_t ascii = AsciiPrefix(text.substr(used));
    out->append(text, used, ascii);
    used += ascii;
    if (used == text.size()) break;
    const Utf8Unit unit = NextUtf8(text.substr(used));
    if (unit.kind == Utf8Kind::kIncomplete) break;
    if (unit.kind == Utf8Kind::kValid) {
      out->append(text, used, unit.length);
    } else {
      out->append(kReplacementCharacter);
    }
    used += unit.length;
  }
  return used;
}

std::string ReplaceInvalidUtf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  if (AppendUtf8(text, &out) < text.size()) out.append(kReplacementCharacter);
  return out;
}

}  // namespace penstock::router
