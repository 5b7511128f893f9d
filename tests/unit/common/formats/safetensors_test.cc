#include "common/formats/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "common/status.h"
#include "tests/unit/common/formats/model_folder.h"

namespace penstock {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kFile[] = "model.safetensors";
constexpr char kIndex[] = "model.safetensors.index.json";

class SafetensorsTest : public ::testing::Test {
 protected:
  // The folder must be refused, naming `file` and `reason`.
  void ExpectRefused(const std::string& reason, const std::string& file = kFile,
                     absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
    const auto checkpoint = SafetensorsCheckpoint::Open(folder_.path());
    ASSERT_FALSE(checkpoint.ok()) << "expected: " << reason;
    EXPECT_EQ(checkpoint.status().code(), code) << checkpoint.status();
    EXPECT_THAT(Message(checkpoint.status()),
                AllOf(HasSubstr(folder_.File(file)), HasSubstr(reason)));
  }
  void ExpectBytesRefused(const std::string& bytes, const std::string& reason) {
    folder_.Write(kFile, bytes);
    ExpectRefused(reason);
  }
  // One tensor "w" with this entry and so many bytes of data.
  void ExpectEntryRefused(const std::string& entry, size_t bytes, const std::string& reason) {
    ExpectBytesRefused(SafetensorsBytes("{\"w\":" + entry + "}", std::string(bytes, 'x')), reason);
  }

  ModelFolder folder_;
};

std::string SmallFile() {
  return SafetensorsBuilder()
      .Tensor("a", "F32", {2, 3}, std::string(24, 'a'))
      .Tensor("b", "BF16", {3}, "bbbbbb")
      .Tensor("scalar", "I64", {}, "ssssssss")
      .Tensor("nothing", "F16", {0, 5}, "")
      .Build();
}

const SafetensorsTensor* Find(const SafetensorsCheckpoint& checkpoint, std::string_view name) {
  for (const SafetensorsTensor& tensor : checkpoint.tensors()) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

TEST_F(SafetensorsTest, ReadsOneFile) {
  folder_.Write(kFile, SmallFile());
  const auto checkpoint = SafetensorsCheckpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->tensors().size(), 4u);
  const SafetensorsTensor* a = Find(**checkpoint, "a");
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(a->dtype, "F32");
  EXPECT_THAT(a->shape, ElementsAre(2, 3));
  EXPECT_EQ(a->num_bytes, 24u);
  EXPECT_EQ(static_cast<char>(a->data[23]), 'a');
  EXPECT_EQ(static_cast<char>(Find(**checkpoint, "b")->data[0]), 'b');
  EXPECT_TRUE(Find(**checkpoint, "scalar")->shape.empty());
  EXPECT_EQ(Find(**checkpoint, "nothing")->num_bytes, 0u);
}

TEST_F(SafetensorsTest, IgnoresMetadataAndPadding) {
  folder_.Write(kFile, SafetensorsBytes(R"({"__metadata__":{"format":"pt"},
    "w":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}      )",
                                        "hh"));
  const auto checkpoint = SafetensorsCheckpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->tensors().size(), 1u);
}

TEST_F(SafetensorsTest, RefusesLyingHeaders) {
  ExpectBytesRefused("short", "too short for a header");
  ExpectBytesRefused(SafetensorsBytes("{}", "", 3), "ends beyond the file of 10");
  ExpectBytesRefused(SafetensorsBytes("{}", "", 99'999'999), "ends beyond the file");
  ExpectBytesRefused(SafetensorsBytes("{}", "", ~uint64_t{1}), "at most 100000000");
  ExpectBytesRefused(SafetensorsBytes("{\"w\":", ""), "not valid JSON");
  ExpectBytesRefused(SafetensorsBytes("{} x", ""), "not valid JSON");
  ExpectBytesRefused(SafetensorsBytes("[]", ""), "not a JSON object");
  ExpectBytesRefused(SafetensorsBytes("{\"\xff\":1}", ""), "not valid JSON");
  ExpectBytesRefused(SafetensorsBytes(std::string(100'000, '['), ""), "nested too deeply");
  ExpectBytesRefused(SafetensorsBytes("{}", "left over"), "9 bytes at the end");
  ExpectBytesRefused("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull");
  ExpectBytesRefused("PK\3\4 a zip file that is none", "not a safetensors file");
}

TEST_F(SafetensorsTest, RefusesBadEntries) {
  ExpectEntryRefused("3", 0, "\"dtype\" is missing");
  ExpectEntryRefused(R"({"dtype":"Q9","shape":[1],"data_offsets":[0,1]})", 1,
                     "unknown dtype \"Q9\"");
  ExpectEntryRefused(R"({"dtype":7,"shape":[1],"data_offsets":[0,1]})", 1, "\"dtype\" is 7");
  ExpectEntryRefused(R"({"dtype":"F32","data_offsets":[0,4]})", 4, "\"shape\" is missing");
  ExpectEntryRefused(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})", 4,
                     "\"shape\" is [-1]");
  ExpectEntryRefused(R"({"dtype":"F32","shape":[1.5],"data_offsets":[0,4]})", 4, "\"shape\" is");
  ExpectEntryRefused(R"({"dtype":"F32","shape":[1]})", 4, "\"data_offsets\" is missing");
  ExpectEntryRefused(R"({"dtype":"F32","shape":[1],"data_offsets":[0]})", 4, "a begin and an end");
  ExpectEntryRefused(R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})", 4,
                     "a begin and an end");
  ExpectEntryRefused(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})", 4, "cut short");
  ExpectEntryRefused(R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})", 8,
                     "tensor w of F32 [3] needs 12 bytes, but has 8");
  ExpectEntryRefused(
      R"({"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,8]})", 8,
      "impossible shape");
  ExpectEntryRefused(R"({"dtype":"F32","shape":[1],"data_offsets":[4,8]})", 8,
                     "behind bytes that belong to no tensor");
}

TEST_F(SafetensorsTest, RefusesOverlapAndDoubledNames) {
  ExpectBytesRefused(SafetensorsBytes(R"({"v":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
    "w":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
                                      std::string(12, 'x')),
                     "tensor w overlaps");
  ExpectBytesRefused(SafetensorsBytes(R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
    "w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                                      std::string(8, 'x')),
                     "\"w\" twice");
}

TEST_F(SafetensorsTest, EveryTruncationIsRefused) {
  const std::string whole = SmallFile();
  for (size_t size = 0; size < whole.size(); ++size) {
    folder_.Write(kFile, whole.substr(0, size));
    const auto checkpoint = SafetensorsCheckpoint::Open(folder_.path());
    ASSERT_FALSE(checkpoint.ok()) << "at " << size << " of " << whole.size() << " bytes";
    EXPECT_EQ(checkpoint.status().code(), absl::StatusCode::kInvalidArgument);
  }
}

// A corrupt file is either refused or harmless: everything it offers can be read.
TEST_F(SafetensorsTest, RandomCorruptionNeverReadsOutside) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::printf("seed %u\n", seed);
  std::mt19937 random(seed);
  const std::string whole = SmallFile();
  uint64_t sum = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string bytes = whole;
    for (uint32_t n = random() % 3 + 1; n > 0; --n) {
      const char choices[] = {'0', '9', '"', ',', static_cast<char>(random()), '\0'};
      bytes[random() % bytes.size()] = choices[random() % 6];
    }
    folder_.Write(kFile, bytes);
    const auto checkpoint = SafetensorsCheckpoint::Open(folder_.path());
    if (!checkpoint.ok()) {
      EXPECT_EQ(checkpoint.status().code(), absl::StatusCode::kInvalidArgument);
      continue;
    }
    for (const SafetensorsTensor& tensor : (*checkpoint)->tensors()) {
      for (uint64_t i = 0; i < tensor.num_bytes; ++i) sum += static_cast<uint8_t>(tensor.data[i]);
    }
  }
  EXPECT_GT(sum, 0u);
}

class ShardsTest : public SafetensorsTest {
 protected:
  ShardsTest() {
    folder_.Write("one.safetensors", SafetensorsBuilder().Tensor("a", "F16", {1}, "aa").Build());
    folder_.Write(
        "two.safetensors",
        SafetensorsBuilder().Tensor("b", "F16", {1}, "bb").Tensor("c", "F16", {1}, "cc").Build());
  }
  void Index(const std::string& map) { folder_.Write(kIndex, "{\"weight_map\":" + map + "}"); }
};

TEST_F(ShardsTest, ReadsAll) {
  Index(R"({"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"})");
  const auto checkpoint = SafetensorsCheckpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->tensors().size(), 3u);
  EXPECT_EQ(static_cast<char>(Find(**checkpoint, "a")->data[0]), 'a');
  EXPECT_EQ(static_cast<char>(Find(**checkpoint, "c")->data[0]), 'c');
}

TEST_F(ShardsTest, RefusesAnIndexThatIsWrong) {
  Index(R"({"a":"one.safetensors","b":"three.safetensors"})");
  ExpectRefused("names this shard, but it is absent", "three.safetensors",
                absl::StatusCode::kNotFound);
  Index(R"({"a":"one.safetensors","d":"one.safetensors"})");
  ExpectRefused("tensor d should be here", "one.safetensors");
  Index(R"({"a":"one.safetensors","b":"two.safetensors"})");
  ExpectRefused("tensor c is here, but not by the index", "two.safetensors");
  Index(R"({"a":"two.safetensors","b":"two.safetensors","c":"two.safetensors"})");
  ExpectRefused("tensor a should be here", "two.safetensors");
  Index(R"({"a":"../one.safetensors"})");
  ExpectRefused("not the name of a file", kIndex);
  Index(R"({"a":1})");
  ExpectRefused("not the name of a file", kIndex);
  folder_.Write(kIndex, "{}");
  ExpectRefused("\"weight_map\" is missing", kIndex);
  folder_.Write(kIndex, "{");
  ExpectRefused("not valid JSON", kIndex);
}

TEST_F(ShardsTest, RefusesATensorInTwoShards) {
  folder_.Write("two.safetensors", SafetensorsBuilder().Tensor("a", "F16", {1}, "xx").Build());
  Index(R"({"a":"one.safetensors","b":"two.safetensors"})");
  ExpectRefused("tensor a is here, but not by the index", "two.safetensors");
}

TEST_F(SafetensorsTest, AnEmptyFolderSaysWhatIsWanted) {
  const auto checkpoint = SafetensorsCheckpoint::Open(folder_.path());
  EXPECT_EQ(checkpoint.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(checkpoint.status()), HasSubstr("--load-format=dummy"));
}

}  // namespace
}  // namespace penstock
