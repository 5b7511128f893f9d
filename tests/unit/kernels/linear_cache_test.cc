// The file of measured linear choices: what is written is read; anything else is no file.
#include "kernels/cuda/linear_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace penstock::kernels::cuda {
namespace {

constexpr char kHeader[] = "penstock linear 1 | a GPU";

LinearChoices Some() {
  LinearChoices choices;
  choices[{{6144, 4096, LinearOutput::kBf16}, 1}] = {.stream = "t8-r32", .us = 12.5f};
  choices[{{6144, 4096, LinearOutput::kBf16, 4}, 64}] = {
      .algorithm = {1, 2, 3, 0xfedcba9876543210, 5, 6, 7, ~uint64_t{0}}, .us = 15.25f};
  choices[{{28672, 4096, LinearOutput::kSiluUp}, 8}] = {.stream = "t8-r16", .us = 55};
  return choices;
}

TEST(LinearCacheTest, ReadsWhatItWrote) {
  const auto parsed = ParseChoices(FormatChoices(kHeader, Some()), kHeader);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(*parsed, Some());
}

TEST(LinearCacheTest, RefusesWhatItDidNotWrite) {
  const std::string good = FormatChoices(kHeader, Some());
  EXPECT_FALSE(ParseChoices("", kHeader).ok());
  EXPECT_FALSE(ParseChoices(good, "penstock linear 2 | a GPU").ok());
  for (size_t length = 0; length + 1 < good.size(); ++length) {  // cut anywhere
    EXPECT_FALSE(ParseChoices(good.substr(0, length), kHeader).ok()) << length;
  }
  const auto with = [](const std::string& line) {
    return std::string(kHeader) + "\n" + line + "\nend\n";
  };
  EXPECT_TRUE(ParseChoices(with("64 64 0 1 1 stream a 1.0"), kHeader).ok());
  for (const char* line :
       {"", "x", "64 64 0 1 1 stream a", "64 64 3 1 1 stream a 1.0", "0 64 0 1 1 stream a 1.0",
        "64 64 0 0 1 stream a 1.0", "64 64 0 1 -1 stream a 1.0", "64 64 0 1 1 magic a 1.0",
        "64 64 0 1 1 lt 12 1.0", "64 64 0 1 1 stream a 1.0 more",
        "99999999999999999999 64 0 1 1 stream a 1.0"}) {
    EXPECT_FALSE(ParseChoices(with(line), kHeader).ok()) << line;
  }
  EXPECT_FALSE(
      ParseChoices(with("64 64 0 1 1 stream a 1.0\n64 64 0 1 1 stream b 1.0"), kHeader).ok());
}

TEST(LinearCacheTest, FilesComeAndGoWhole) {
  const auto folder = std::filesystem::temp_directory_path() / "penstock_linear_cache_test";
  std::filesystem::remove_all(folder);
  const std::string path = folder / "deep" / "gpu.txt";
  EXPECT_TRUE(LoadChoices(path, kHeader).empty());
  ASSERT_TRUE(SaveChoices(path, kHeader, Some()).ok());
  EXPECT_EQ(LoadChoices(path, kHeader), Some());
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder / "deep"), {}), 1);
  std::ofstream(path) << "garbage";
  EXPECT_TRUE(LoadChoices(path, kHeader).empty());
  ASSERT_TRUE(SaveChoices(path, kHeader, Some()).ok());
  EXPECT_EQ(LoadChoices(path, kHeader), Some());
  EXPECT_FALSE(SaveChoices("/proc/no/such/file", kHeader, Some()).ok());
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace penstock::kernels::cuda
