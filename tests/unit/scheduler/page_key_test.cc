#include "scheduler/page_key.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <utility>
#include <vector>

namespace penstock::scheduler {
namespace {

constexpr KeySecret kSecret{0x0706050403020100, 0x0f0e0d0c0b0a0908};

// Bytes 0, 1, 2, ...; the hashes are what OpenSSL 3.0 says: `openssl mac -macopt size:16 SIPHASH`
// with the key 000102030405060708090a0b0c0d0e0f.
TEST(PageKeyTest, IsSipHashWith128Bits) {
  const std::vector<std::pair<size_t, PageKey>> cases = {
      {0, {0xe6a825ba047f81a3, 0x930255c71472f66d}},
      {1, {0x44af996bd8c187da, 0x45fc229b11597634}},
      {8, {0x61f55862baa9623b, 0xb49714f364e2830f}},
      {15, {0x11a8b03399e99354, 0xd9c3cf970fec087e}},
      {63, {0x4a83502f77d15051, 0x7cbd3f979a063e50}},
  };
  std::string bytes;
  for (int i = 0; i < 64; ++i) bytes.push_back(static_cast<char>(i));
  for (const auto& [length, key] : cases) {
    EXPECT_EQ(HashBytes(kSecret, bytes.substr(0, length)), key) << length;
  }
}

TEST(PageKeyTest, TellsParentIdsSaltAndSecretApart) {
  const std::vector<int32_t> ids = {1, 2, 3, 4}, others = {1, 2, 3, 5};
  const PageKey root = RootKey(kSecret, "");
  const PageKey salted = RootKey(kSecret, "tenant");
  std::vector<PageKey> keys = {root,
                               salted,
                               NextKey(kSecret, root, ids),
                               NextKey(kSecret, root, others),
                               NextKey(kSecret, salted, ids),
                               NextKey(kSecret, NextKey(kSecret, root, ids), ids),
                               NextKey({1, 2}, root, ids)};
  std::set<std::pair<uint64_t, uint64_t>> distinct;
  for (const PageKey& key : keys) distinct.emplace(key.low, key.high);
  EXPECT_EQ(distinct.size(), keys.size());
  EXPECT_EQ(NextKey(kSecret, root, ids), keys[2]);
}

}  // namespace
}  // namespace penstock::scheduler
