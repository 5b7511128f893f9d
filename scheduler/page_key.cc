#include "scheduler/page_key.h"

#include <bit>
#include <cstring>

namespace penstock::scheduler {
namespace {

static_assert(std::endian::native == std::endian::little);

// SipHash-2-4 with 128 bits of output, fed with words.
class SipHash {
 public:
  explicit SipHash(const KeySecret& secret)
      : v0_(secret.k0 ^ 0x736f6d6570736575),
        v1_(secret.k1 ^ 0x646f72616e646f6d ^ 0xee),
        v2_(secret.k0 ^ 0x6c7967656e657261),
        v3_(secret.k1 ^ 0x7465646279746573) {}

  void Add(uint64_t word) {
    v3_ ^= word;
    Round();
    Round();
    v0_ ^= word;
  }

  // The bytes that do not fill words, then the end; `length` is that of all bytes added.
  PageKey Finish(const void* rest, size_t length) {
    uint64_t word = 0;
    if (length % 8 != 0) std::memcpy(&word, rest, length % 8);
    Add(word | static_cast<uint64_t>(length) << 56);
    PageKey key;
    v2_ ^= 0xee;
    key.low = Squeeze();
    v1_ ^= 0xdd;
    key.high = Squeeze();
    return key;
  }

 private:
  void Round() {
    v0_ += v1_;
    v2_ += v3_;
    v1_ = std::rotl(v1_, 13) ^ v0_;
    v3_ = std::rotl(v3_, 16) ^ v2_;
    v0_ = std::rotl(v0_, 32);
    v2_ += v1_;
    v0_ += v3_;
    v1_ = std::rotl(v1_, 17) ^ v2_;
    v3_ = std::rotl(v3_, 21) ^ v0_;
    v2_ = std::rotl(v2_, 32);
  }
  uint64_t Squeeze() {
    for (int i = 0; i < 4; ++i) Round();
    return v0_ ^ v1_ ^ v2_ ^ v3_;
  }

  uint64_t v0_, v1_, v2_, v3_;
};

// Adds all whole words of `bytes`; returns where the rest begins.
const char* AddWords(std::string_view bytes, SipHash* hash) {
  const char* at = bytes.data();
  for (size_t i = 0; i < bytes.size() / 8; ++i, at += 8) {
    uint64_t word;
    std::memcpy(&word, at, 8);
    hash->Add(word);
  }
  return at;
}

}  // namespace

PageKey HashBytes(const KeySecret& secret, std::string_view bytes) {
  SipHash hash(secret);
  const char* rest = AddWords(bytes, &hash);
  return hash.Finish(rest, bytes.size());
}

PageKey RootKey(const KeySecret& secret, std::string_view salt) { return HashBytes(secret, salt); }

PageKey NextKey(const KeySecret& secret, const PageKey& parent, std::span<const int32_t> ids) {
  SipHash hash(secret);
  hash.Add(parent.low);
  hash.Add(parent.high);
  const std::string_view bytes(reinterpret_cast<const char*>(ids.data()), ids.size_bytes());
  const char* rest = AddWords(bytes, &hash);
  return hash.Finish(rest, sizeof(parent) + bytes.size());
}

}  // namespace penstock::scheduler
