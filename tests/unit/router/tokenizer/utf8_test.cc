#include "router/tokenizer/utf8.h"

#include <gtest/gtest.h>

#include <string>

namespace penstock::router {
namespace {

TEST(Utf8Test, AcceptsWholeCharacters) {
  for (const char* text :
       {"", "plain ASCII that is long enough for words", "\xC2\x80", "\xDF\xBF", "\xE0\xA0\x80",
        "\xED\x9F\xBF", "\xEE\x80\x80", "\xEF\xBF\xBF", "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF",
        "na\xC3\xAFve \xF0\x9F\x98\x80!"}) {
    EXPECT_TRUE(IsValidUtf8(text)) << text;
    EXPECT_EQ(ReplaceInvalidUtf8(text), text);
  }
  EXPECT_TRUE(IsValidUtf8(std::string_view("a\0b", 3)));
}

// What Python's bytes.decode(errors="replace") gives; "?" stands for U+FFFD.
TEST(Utf8Test, ReplacesMaximalSubparts) {
  const struct {
    std::string_view broken;
    std::string_view replaced;
  } kCases[] = {
      {"\x80", "?"},
      {"\xFF\xFE", "??"},
      {"\xC0\xAF", "??"},
      {"\xC3", "?"},
      {"\xC3(", "?("},
      {"\xE2\x82", "?"},
      {"\xE2\x82X", "?X"},
      {"\xE0\x80\xAF", "???"},
      {"\xED\xA0\x80", "???"},
      {"\xF0\x9F\x98", "?"},
      {"\xF0\x9F\x98\xF0\x9F\x98\x80", "?\xF0\x9F\x98\x80"},
      {"\xF0\x80\x80\xAF", "????"},
      {"\xF4\x90\x80\x80", "????"},
      {"\xF1\x80\x80\xE1\x80\xC2X", "???X"},
      {"ab\xE2\x28\xA1 cd", "ab?(? cd"},
  };
  for (const auto& test : kCases) {
    std::string wanted;
    for (char c : test.replaced) {
      wanted += c == '?' ? std::string(kReplacementCharacter) : std::string(1, c);
    }
    EXPECT_FALSE(IsValidUtf8(test.broken));
    EXPECT_EQ(ReplaceInvalidUtf8(test.broken), wanted) << test.replaced;
  }
}

TEST(Utf8Test, AppendLeavesAnIncompleteEnd) {
  std::string out;
  EXPECT_EQ(AppendUtf8("ab\xF0\x9F\x98", &out), 2u);
  EXPECT_EQ(out, "ab");
  EXPECT_EQ(AppendUtf8("\xF0\x9F\x98\x80", &out), 4u);
  EXPECT_EQ(out, "ab\xF0\x9F\x98\x80");
  EXPECT_EQ(AppendUtf8("\x80\xC3", &out), 1u);
  EXPECT_EQ(NextUtf8("\xC3").kind, Utf8Kind::kIncomplete);
}

}  // namespace
}  // namespace penstock::router
