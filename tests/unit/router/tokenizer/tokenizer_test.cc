#include "router/tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "router/tokenizer/gguf_tokenizer.h"
#include "router/tokenizer/utf8.h"
#include "tests/unit/router/test_models.h"

namespace penstock::router {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string RandomUtf8(std::mt19937& random, int length) {
  std::string text;
  for (int i = 0; i < length; ++i) {
    const uint32_t limits[] = {0x20, 0x80, 0x80, 0x80, 0x800, 0xd800, 0x10000, 0x110000};
    uint32_t code_point = random() % limits[random() % 8];
    if (code_point >= 0xd800 && code_point < 0xe000) code_point = ' ';
    if (code_point < 0x80) {
      text += static_cast<char>(code_point);
    } else if (code_point < 0x800) {
      text += static_cast<char>(0xc0 | code_point >> 6);
      text += static_cast<char>(0x80 | (code_point & 0x3f));
    } else if (code_point < 0x10000) {
      text += static_cast<char>(0xe0 | code_point >> 12);
      text += static_cast<char>(0x80 | (code_point >> 6 & 0x3f));
      text += static_cast<char>(0x80 | (code_point & 0x3f));
    } else {
      text += static_cast<char>(0xf0 | code_point >> 18);
      text += static_cast<char>(0x80 | (code_point >> 12 & 0x3f));
      text += static_cast<char>(0x80 | (code_point >> 6 & 0x3f));
      text += static_cast<char>(0x80 | (code_point & 0x3f));
    }
  }
  return text;
}

TEST(TokenizerTest, MergesByRank) {
  const auto tokenizer = MakeTinyTokenizer();
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_THAT(tokenizer->Encode("hello", false), ElementsAre(259));
  EXPECT_THAT(tokenizer->Encode("hellx", false), ElementsAre(258, 'x'));
  EXPECT_THAT(tokenizer->Encode("lll", false), ElementsAre(257, 'l'));
  EXPECT_THAT(tokenizer->Encode("hello wo", false), ElementsAre(259, 260, 'o'));
  EXPECT_THAT(tokenizer->Encode("12", false), ElementsAre('1', '2'));
  EXPECT_TRUE(tokenizer->Encode("", false).empty());
  EXPECT_EQ(tokenizer->TokenBytes(260), " w");
  EXPECT_EQ(tokenizer->TokenBytes(0), std::string_view("\0", 1));
  EXPECT_EQ(tokenizer->TokenBytes(-1), "");
  EXPECT_EQ(tokenizer->TokenBytes(100000), "");
}

TEST(TokenizerTest, AddedTokensComeFirst) {
  const auto tokenizer = MakeTinyTokenizer();
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_THAT(tokenizer->Encode("h<|end|>e", true), ElementsAre('h', 261, 'e'));
  EXPECT_THAT(tokenizer->Encode("<|end|", true), ElementsAre('<', '|', 'e', 'n', 'd', '|'));
  EXPECT_THAT(tokenizer->Encode("<|end|>", false), ElementsAre('<', '|', 'e', 'n', 'd', '|', '>'));
  EXPECT_THAT(tokenizer->Encode("<tool>hello<tool>>", false), ElementsAre(263, 259, 264));
  EXPECT_THAT(tokenizer->Encode("<<tool>>>", true), ElementsAre('<', 264, '>'));
  EXPECT_TRUE(tokenizer->IsSpecial(261));
  EXPECT_FALSE(tokenizer->IsSpecial(263));
  EXPECT_FALSE(tokenizer->IsSpecial(-1));
  EXPECT_FALSE(tokenizer->IsSpecial(265));
  EXPECT_EQ(tokenizer->eos_id(), 261);
  EXPECT_EQ(tokenizer->bos_id(), 262);
  EXPECT_FALSE(tokenizer->add_bos());
  EXPECT_THAT(tokenizer->eos_ids(), ElementsAre(261));
  const std::vector<int32_t> ids = {262, 259, 263, 261, 9999};
  EXPECT_EQ(tokenizer->Decode(ids, true), "hello<tool>");
  EXPECT_EQ(tokenizer->Decode(ids, false), "<|start|>hello<tool><|end|>");
}

TEST(TokenizerTest, BrokenUtf8IsReplaced) {
  const auto tokenizer = MakeTinyTokenizer();
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->Encode("a\xF0\x9F"
                              "b\x80",
                              true),
            tokenizer->Encode("a\xEF\xBF\xBD"
                              "b\xEF\xBF\xBD",
                              true));
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{0xf0, 0x9f, 'b'}, true),
            "\xEF\xBF\xBD"
            "b");
}

TEST(TokenizerTest, RandomTextSurvivesARoundTrip) {
  const auto tokenizer = MakeTinyTokenizer();
  ASSERT_NE(tokenizer, nullptr);
  const uint32_t seed = std::random_device{}();
  std::printf("seed %u\n", seed);
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 2000; ++round) {
    const std::string text = RandomUtf8(random, static_cast<int>(random() % 200));
    for (bool parse_special : {false, true}) {
      ASSERT_EQ(tokenizer->Decode(tokenizer->Encode(text, parse_special), false), text);
    }
    std::string bytes = text;
    for (char& c : bytes) {
      if (random() % 8 == 0) c = static_cast<char>(random());
    }
    ASSERT_EQ(tokenizer->Decode(tokenizer->Encode(bytes, true), false), ReplaceInvalidUtf8(bytes));
  }
}

// Whether short or long, cached or not: a word's tokens are those of the plain definition.
TEST(TokenizerTest, LongAndShortWordsMergeAlike) {
  const auto file = OpenBuilt(TinyVocabulary().Builder());
  ASSERT_TRUE(file.ok()) << file.status();
  const auto description = ReadGgufTokenizer(**file);
  ASSERT_TRUE(description.ok()) << description.status();
  const Vocabulary& vocabulary = description->vocabulary;
  const auto naive = [&](std::string_view word) {
    std::vector<int32_t> ids;
    for (char c : word) ids.push_back(vocabulary.byte_ids[static_cast<uint8_t>(c)]);
    while (true) {
      size_t best = ids.size();
      Merge best_merge{};
      for (size_t i = 0; i + 1 < ids.size(); ++i) {
        const auto merge = vocabulary.merges.find(Vocabulary::MergeKey(ids[i], ids[i + 1]));
        if (merge == vocabulary.merges.end()) continue;
        if (best < ids.size() && merge->second.rank >= best_merge.rank) continue;
        best = i;
        best_merge = merge->second;
      }
      if (best == ids.size()) return ids;
      ids[best] = best_merge.merged_id;
      ids.erase(ids.begin() + static_cast<ptrdiff_t>(best) + 1);
    }
  };
  const uint32_t seed = std::random_device{}();
  std::printf("seed %u\n", seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 3000; ++round) {
    std::string word;
    for (uint32_t length = random() % 120; length > 0; --length) word += "hello w"[random() % 7];
    std::vector<int32_t> ids;
    EncodeWord(vocabulary, word, &ids);
    ASSERT_EQ(ids, naive(word)) << word << " seed " << seed;
  }
}

TEST(TokenizerTest, HugeInputsOfOneKindAreHarmless) {
  const auto file = OpenBuilt(TinyVocabulary().Builder("llama-bpe"));
  ASSERT_TRUE(file.ok()) << file.status();
  const auto llama = Tokenizer::FromGguf(**file);
  ASSERT_TRUE(llama.ok()) << llama.status();
  const auto tiny = MakeTinyTokenizer();
  constexpr size_t kBytes = 1 << 19;
  for (const char* piece : {" ", "a", "1", "\n", " \n", "<", "<|end|", "'", "hello", "\xC3\xA9",
                            "\x80", "\xE3\x80\x80", " a", "\t!"}) {
    std::string text;
    while (text.size() < kBytes) text += piece;
    for (const Tokenizer* tokenizer : {tiny.get(), llama->get()}) {
      const std::vector<int32_t> ids = tokenizer->Encode(text, true);
      EXPECT_EQ(tokenizer->Decode(ids, false), ReplaceInvalidUtf8(text)) << piece;
    }
  }
}

TEST(TokenizerTest, ThreadsShareOneTokenizer) {
  const auto tokenizer = MakeTinyTokenizer();
  ASSERT_NE(tokenizer, nullptr);
  std::mt19937 random(7);
  std::vector<std::string> texts;
  std::vector<std::vector<int32_t>> wanted;
  for (int i = 0; i < 300; ++i) {
    texts.push_back(RandomUtf8(random, 60) + " hello world");
    wanted.push_back(MakeTinyTokenizer()->Encode(texts.back(), true));
  }
  std::vector<std::thread> threads;
  std::vector<int> mismatches(4, 0);
  for (size_t t = 0; t < mismatches.size(); ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < 20; ++round) {
        for (size_t i = 0; i < texts.size(); ++i) {
          const size_t at = (i + t * 31) % texts.size();
          mismatches[t] += tokenizer->Encode(texts[at], true) != wanted[at];
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(mismatches, ElementsAre(0, 0, 0, 0));
}

TEST(TokenizerTest, FamiliesDifferAsTheyShould) {
  const auto encode = [](std::string_view pre, std::string_view text) {
    TinyVocabulary vocabulary;
    vocabulary.Add("12", 1);
    vocabulary.Add("123", 1);
    vocabulary.Add("zq", 1);  // no merge makes this
    vocabulary.merges.push_back("1 2");
    vocabulary.merges.push_back("12 3");
    const auto file = OpenBuilt(vocabulary.Builder(pre));
    const auto tokenizer = Tokenizer::FromGguf(**file);
    return (*tokenizer)->Encode(text, true);
  };
  EXPECT_THAT(encode("gpt-2", "1234"), ElementsAre(266, '4'));
  EXPECT_THAT(encode("smollm", "1234"), ElementsAre('1', '2', '3', '4'));
  EXPECT_THAT(encode("llama-bpe", "1234"), ElementsAre(266, '4'));
  EXPECT_THAT(encode("qwen2", "1234"), ElementsAre('1', '2', '3', '4'));
  EXPECT_THAT(encode("llama-bpe", "zq"), ElementsAre(267)) << "a whole word is taken as it is";
  EXPECT_THAT(encode("qwen2", "zq"), ElementsAre('z', 'q'));
  EXPECT_THAT(encode("qwen2", "e\xCC\x81"), ElementsAre(0xc3, 0xa9)) << "normal form C";
}

TEST(TokenizerTest, LlamaAddsBosUnlessTheFileSaysNo) {
  const auto add_bos = [](GgufBuilder builder) {
    const auto file = OpenBuilt(builder.U32("tokenizer.ggml.bos_token_id", 262));
    return (*Tokenizer::FromGguf(**file))->add_bos();
  };
  const TinyVocabulary vocabulary;
  EXPECT_FALSE(add_bos(vocabulary.Builder("gpt-2")));
  EXPECT_TRUE(add_bos(vocabulary.Builder("llama-bpe")));
  EXPECT_FALSE(
      add_bos(vocabulary.Builder("llama-bpe").Bool("tokenizer.ggml.add_bos_token", false)));
  EXPECT_TRUE(add_bos(vocabulary.Builder("gpt-2").Bool("tokenizer.ggml.add_bos_token", true)));
}

class BadVocabularyTest : public ::testing::Test {
 protected:
  static void ExpectRefused(const GgufBuilder& builder, const std::string& reason) {
    const auto file = OpenBuilt(builder);
    ASSERT_TRUE(file.ok()) << file.status();
    const auto tokenizer = Tokenizer::FromGguf(**file);
    ASSERT_FALSE(tokenizer.ok()) << "expected: " << reason;
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(reason));
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr((*file)->path()));
  }
};

TEST_F(BadVocabularyTest, IsRefusedWithAReason) {
  ExpectRefused(GgufBuilder(), "\"tokenizer.ggml.model\" is missing");
  ExpectRefused(GgufBuilder().Str("tokenizer.ggml.model", "llama"), "is \"llama\"; Penstock knows");
  ExpectRefused(TinyVocabulary().Builder("tekken"), "is \"tekken\", a pre-tokeniser that");
  TinyVocabulary twice;
  twice.Add("hello", 1);
  ExpectRefused(twice.Builder(), "tokens 259 and 265 are the same");
  TinyVocabulary types;
  types.types.pop_back();
  ExpectRefused(types.Builder(), "264 entries for 265 tokens");
  types.types.push_back(77);
  ExpectRefused(types.Builder(), "token 264 has the type 77");
  TinyVocabulary merges;
  merges.merges.push_back("q q");
  ExpectRefused(merges.Builder(), "merge 5 names a token");
  merges.merges.back() = "qq";
  ExpectRefused(merges.Builder(), "merge 5 is not two tokens");
  ExpectRefused(TinyVocabulary().Builder().U32("tokenizer.ggml.eos_token_id", 265),
                "eos_token_id is 265, but there are 265 tokens");
  TinyVocabulary empty;
  empty.tokens.clear();
  empty.types.clear();
  ExpectRefused(empty.Builder(), "tokens is empty");
}

}  // namespace
}  // namespace penstock::router
