// What names the contents of a KV page, or of its beginning: a 128-bit keyed hash over all ids up
// to there and the request's salt, made page by page. Pure.
//
// Equal keys are taken for equal ids; nothing is compared. By chance two of 10^10 pages meet with a
// probability below 10^-18. On purpose nobody can make them meet: the hash is SipHash-2-4 with 128
// bits (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012), a pseudo-random function
// of a secret that each process draws anew and never tells.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace penstock::scheduler {

struct PageKey {
  uint64_t low = 0, high = 0;
  bool operator==(const PageKey&) const = default;
};

struct PageKeyHash {  // of a key, any bits are as random as others
  size_t operator()(const PageKey& key) const { return key.low; }
};

struct KeySecret {
  uint64_t k0 = 0, k1 = 0;
};

// SipHash-2-4-128 of some bytes.
PageKey HashBytes(const KeySecret& secret, std::string_view bytes);

// What stands for the page before the first. Requests of different salts have no page in common.
PageKey RootKey(const KeySecret& secret, std::string_view salt);
// Of the page with these ids that follows the page `parent`. Other numbers of ids, other keys.
PageKey NextKey(const KeySecret& secret, const PageKey& parent, std::span<const int32_t> ids);

}  // namespace penstock::scheduler
