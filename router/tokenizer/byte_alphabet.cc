#include "router/tokenizer/byte_alphabet.h"

#include <array>
#include <cstdint>

namespace penstock::router {
namespace {

// By code point; -1 for none.
std::array<int16_t, 0x144> MakeByteOfCodePoint() {
  std::array<int16_t, 0x144> byte_of{};
  byte_of.fill(-1);
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
    byte_of[printable ? byte : next++] = static_cast<int16_t>(byte);
  }
  return byte_of;
}

}  // namespace

std::optional<std::string> BytesOfText(std::string_view text) {
  static const std::array<int16_t, 0x144> kByteOf = MakeByteOfCodePoint();
  std::string bytes;
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<uint8_t>(text[i]);
    uint32_t code_point = lead;
    if (lead >= 0x80) {
      // The alphabet ends at U+0143, so that two bytes are the most.
      if (lead < 0xc2 || lead > 0xc5 || i + 1 == text.size()) return std::nullopt;
      const auto next = static_cast<uint8_t>(text[i + 1]);
      if ((next & 0xc0) != 0x80) return std::nullopt;
      code_point = (lead & 0x1fu) << 6 | (next & 0x3fu);
    }
    if (code_point >= kByteOf.size() || kByteOf[code_point] < 0) return std::nullopt;
    bytes += static_cast<char>(kByteOf[code_point]);
    i += lead < 0x80 ? 1 : 2;
  }
  return bytes;
}

}  // namespace penstock::router
