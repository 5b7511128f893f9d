#include "router/stream/text_stream.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "router/tokenizer/utf8.h"
#include "tests/unit/router/test_models.h"

namespace penstock::router {
namespace {

class TextStreamTest : public ::testing::Test {
 protected:
  void SetUp() override {
    tokenizer_ = MakeTinyTokenizer();
    ASSERT_NE(tokenizer_, nullptr);
  }
  TextStream Stream(std::vector<std::string> stop = {}, bool include_stop_str = false,
                    bool skip_special = true) const {
    return TextStream(tokenizer_.get(), {.skip_special = skip_special,
                                         .stop = std::move(stop),
                                         .include_stop_str = include_stop_str});
  }
  // In the tiny vocabulary a byte is its own id.
  static std::string Append(TextStream& stream, std::string_view bytes) {
    std::vector<int32_t> ids;
    for (char c : bytes) ids.push_back(static_cast<uint8_t>(c));
    return stream.Append(ids);
  }

  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(TextStreamTest, HoldsBackHalfCharacters) {
  TextStream stream = Stream();
  EXPECT_EQ(Append(stream, "a\xF0\x9F"), "a");
  EXPECT_EQ(Append(stream, "\x98"), "");
  EXPECT_EQ(Append(stream, "\x80!"), "\xF0\x9F\x98\x80!");
  EXPECT_EQ(stream.Flush(), "");
  EXPECT_EQ(stream.num_tokens(), 6u);
}

TEST_F(TextStreamTest, ReplacesBrokenBytesOnceCertain) {
  TextStream stream = Stream();
  EXPECT_EQ(Append(stream, "\x80"), "\xEF\xBF\xBD");
  EXPECT_EQ(Append(stream, "\xE2\x82"), "");
  EXPECT_EQ(Append(stream, "x"), "\xEF\xBF\xBDx");
  EXPECT_EQ(Append(stream, "\xE2\x82"), "");
  EXPECT_EQ(stream.Flush(), "\xEF\xBF\xBD");
  EXPECT_EQ(stream.Flush(), "");
}

TEST_F(TextStreamTest, SkipsSpecialTokensOrNot) {
  const std::vector<int32_t> ids = {262, 259, 261, 263};
  TextStream skipping = Stream();
  EXPECT_EQ(skipping.Append(ids), "hello<tool>");
  EXPECT_EQ(skipping.num_tokens(), 4u);
  TextStream showing = Stream({}, false, false);
  EXPECT_EQ(showing.Append(ids), "<|start|>hello<|end|><tool>");
}

TEST_F(TextStreamTest, StopsAcrossTokens) {
  TextStream stream = Stream({"STOP"});
  EXPECT_EQ(Append(stream, "abS"), "ab");
  EXPECT_EQ(Append(stream, "T"), "");
  EXPECT_EQ(Append(stream, "OxSTO"), "STOx");
  EXPECT_FALSE(stream.stopped());
  EXPECT_EQ(Append(stream, "Pmore"), "");
  EXPECT_TRUE(stream.stopped());
  EXPECT_EQ(stream.stop_index(), 0);
  EXPECT_EQ(stream.num_tokens(), 10u) << "the P is the last token taken";
  EXPECT_EQ(Append(stream, "more"), "");
  EXPECT_EQ(stream.Flush(), "");
  EXPECT_EQ(stream.num_tokens(), 10u);
}

TEST_F(TextStreamTest, HeldTextComesAtTheEnd) {
  TextStream stream = Stream({"STOP"});
  EXPECT_EQ(Append(stream, "abSTO"), "ab");
  EXPECT_EQ(stream.Flush(), "STO");
  EXPECT_FALSE(stream.stopped());
}

TEST_F(TextStreamTest, IncludesTheStopStringIfAsked) {
  TextStream stream = Stream({"\n\n"}, true);
  EXPECT_EQ(Append(stream, "a\nb\n"), "a\nb");
  EXPECT_EQ(Append(stream, "\nc"), "\n\n");
  EXPECT_EQ(stream.stop_index(), 0);
}

TEST_F(TextStreamTest, TheFirstToEndWins) {
  TextStream first = Stream({"abcd", "bc"});
  EXPECT_EQ(Append(first, "xabcd"), "xa");
  EXPECT_EQ(first.stop_index(), 1);
  TextStream longest = Stream({"bc", "", "abc"});
  EXPECT_EQ(Append(longest, "xabc"), "x");
  EXPECT_EQ(longest.stop_index(), 2);
  TextStream twice = Stream({"q", "q"});
  EXPECT_EQ(Append(twice, "q"), "");
  EXPECT_EQ(twice.stop_index(), 0);
}

TEST_F(TextStreamTest, StopInTheMiddleOfAToken) {
  TextStream stream = Stream({"el"});
  EXPECT_EQ(stream.Append(std::vector<int32_t>{259, 259}), "h");
  EXPECT_EQ(stream.num_tokens(), 1u);
}

TEST_F(TextStreamTest, StopMayBeAnIncompleteCharacterReplaced) {
  TextStream stream = Stream({"\xEF\xBF\xBD"});
  EXPECT_EQ(Append(stream, "a\xC3"), "a");
  EXPECT_EQ(stream.Flush(), "");
  EXPECT_TRUE(stream.stopped());
}

// The plain definition: the stop string whose first occurrence ends first, the longest of those.
std::string CutAtStop(const std::string& text, const std::vector<std::string>& stops,
                      int* stop_index) {
  size_t best_end = std::string::npos;
  *stop_index = -1;
  for (size_t i = 0; i < stops.size(); ++i) {
    const size_t at = stops[i].empty() ? std::string::npos : text.find(stops[i]);
    if (at == std::string::npos) continue;
    const size_t end = at + stops[i].size();
    const bool longer = end == best_end && *stop_index >= 0 &&
                        stops[i].size() > stops[static_cast<size_t>(*stop_index)].size();
    if (end < best_end || longer) {
      best_end = end;
      *stop_index = static_cast<int>(i);
    }
  }
  if (*stop_index < 0) return text;
  return text.substr(0, best_end - stops[static_cast<size_t>(*stop_index)].size());
}

TEST_F(TextStreamTest, HoweverItIsCutTheTextIsTheSame) {
  const uint32_t seed = std::random_device{}();
  std::printf("seed %u\n", seed);
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  // Few kinds of tokens, so that stop strings and half characters abound.
  const std::vector<int32_t> kinds = {'a', 'b', 'a',  'b',  'l',  256,  257,  259, 260,
                                      261, 263, 0xc3, 0xa9, 0xe2, 0x82, 0xac, 0xf0};
  const std::vector<std::string> pieces = {"a",        "b",    "ab",           "hel",
                                           "\xC3\xA9", "lo w", "\xE2\x82\xAC", ""};
  for (int round = 0; round < 4000; ++round) {
    std::vector<int32_t> ids(random() % 40);
    for (int32_t& id : ids) id = kinds[random() % kinds.size()];
    TextStreamOptions options{.skip_special = random() % 2 == 0};
    for (uint32_t n = random() % 4; n > 0; --n) {
      options.stop.push_back(pieces[random() % 8] + pieces[random() % 8] + pieces[random() % 8]);
    }
    const std::string whole = tokenizer_->Decode(ids, options.skip_special);
    int stop_index = -1;
    const std::string wanted = CutAtStop(whole, options.stop, &stop_index);

    TextStream stream(tokenizer_.get(), options);
    std::string text;
    for (size_t at = 0; at < ids.size();) {
      const size_t count = std::min<size_t>(random() % 5, ids.size() - at);
      const std::string delta = stream.Append(std::span(ids).subspan(at, count));
      ASSERT_TRUE(IsValidUtf8(delta)) << "half a character";
      text += delta;
      at += count;
    }
    text += stream.Flush();
    ASSERT_EQ(text, wanted);
    ASSERT_EQ(stream.stop_index(), stop_index);
    if (stop_index < 0) {
      ASSERT_EQ(stream.num_tokens(), ids.size());
    } else {
      // One token fewer doesn't have the stop string yet, unless an incomplete end counts as
      // U+FFFD.
      const auto taken = std::span(ids).first(stream.num_tokens());
      int found = -1;
      CutAtStop(tokenizer_->Decode(taken, options.skip_special), options.stop, &found);
      ASSERT_EQ(found, stop_index);
      TextStream shorter(tokenizer_.get(), options);
      shorter.Append(taken.first(taken.size() - 1));
      ASSERT_FALSE(shorter.stopped());
    }
  }
}

}  // namespace
}  // namespace penstock::router
