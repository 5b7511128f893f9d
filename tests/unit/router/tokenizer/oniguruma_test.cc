#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "router/tokenizer/regex.h"

namespace penstock::router {
namespace {

TEST(OnigurumaTest, WhatMeansTheSameStaysAsItIs) {
  for (const char* pattern :
       {"", "a|b", R"((?i:'s|'t)|\p{L}+| ?[^\r\n\p{Lu}]{2,}x{3})", R"([a\]\-^z]++(?=\.)\\\[)",
        "é[一-龥]", R"((?<!a)(?<=b)(?>c)(d)?*?)", R"(\x{1F600}\x41[\t\f]\A\z^$.)", "(?i)x"}) {
    const auto translated = PatternFromOniguruma(pattern);
    ASSERT_TRUE(translated.ok()) << translated.status();
    EXPECT_EQ(*translated, std::string(pattern) == R"(\x{1F600}\x41[\t\f]\A\z^$.)"
                               ? R"(\x{1F600}\x{41}[\t\f]\A\z^$.)"
                               : pattern);
  }
}

TEST(OnigurumaTest, WhatMeansAnotherThingIsRewritten) {
  EXPECT_EQ(*PatternFromOniguruma(R"(\d\D[\d])"), R"(\p{Nd}\P{Nd}[\p{Nd}])");
  EXPECT_EQ(*PatternFromOniguruma(R"([\S])"), R"([\P{White_Space}])");
  EXPECT_EQ(*PatternFromOniguruma(R"(\u3000)"), R"(\x{3000})");
  EXPECT_EQ(*PatternFromOniguruma(R"(\v)"), R"(\x{b})");
  EXPECT_EQ(*PatternFromOniguruma("a{,3}{b"), R"(a{0,3}\{b)");
}

TEST(OnigurumaTest, SpacesAreUnicodes) {
  const auto matches = [](const char* pattern, const char* text) {
    return Regex::Compile(*PatternFromOniguruma(pattern))->Find(text, 0).has_value();
  };
  EXPECT_TRUE(matches(R"(\A\s\z)", "\xE3\x80\x80"));
  EXPECT_TRUE(matches(R"(\A[x\s]\z)", "\xC2\x85"));
  EXPECT_FALSE(matches(R"(\s)", "\xE1\xA0\x8E")) << "U+180E";
  EXPECT_TRUE(matches(R"([\S])", "\xE1\xA0\x8E"));
  EXPECT_TRUE(matches(R"(\A\w\w\z)", "e\xCC\x81")) << "marks belong to words";
}

TEST(OnigurumaTest, WhatIsNotKnownIsRefused) {
  for (const char* pattern : {R"(\bx)", R"([a[b]])", "[a&&b]", R"((a)\1)", R"(\k<x>)", "(?m:.)",
                              "(?<x>a)", "(*FAIL)", R"(\h)", R"(\xFF)", "a{2}+", "a{2}?", "[]a]",
                              R"([\W])", R"(\p)", R"(\u12)", "[a", "\\", R"(\x{})"}) {
    const auto translated = PatternFromOniguruma(pattern);
    EXPECT_EQ(translated.status().code(), absl::StatusCode::kUnimplemented) << pattern;
    EXPECT_THAT(std::string(translated.status().message()), testing::HasSubstr(pattern));
  }
}

TEST(RegexTest, SaysWhatIsWrongWithAPattern) {
  const auto regex = Regex::Compile("a(b");
  ASSERT_FALSE(regex.ok());
  EXPECT_THAT(std::string(regex.status().message()), testing::HasSubstr("a(b is not valid at 3"));
}

TEST(RegexTest, QuotedTextMatchesItself) {
  const std::string text = "a.b*c[d]\\E(é) #\n\t{}|^$";
  const auto match = Regex::Compile(QuotePattern(text))->Find("xx" + text + "yy", 0);
  ASSERT_TRUE(match.has_value());
  EXPECT_EQ(match->begin, 2u);
  EXPECT_EQ(match->end, 2 + text.size());
}

}  // namespace
}  // namespace penstock::router
