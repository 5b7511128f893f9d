#include "tools/penstock/flags.h"

#include <gtest/gtest.h>

namespace penstock::launcher {
namespace {

constexpr Flag kFlags[] = {
    {"port", "N", "8000", kRouter, "port"},
    {"max-num-seqs", "N", "", kScheduler | kWorker, "sequences"},
    {"no-overlap", "", "", kScheduler, "a switch"},
    {"help", "", "", kLauncher, "help"},
};

absl::StatusOr<CommandLine> ParseAll(std::vector<std::string> args) {
  std::vector<char*> argv;
  argv.reserve(args.size());
  for (std::string& arg : args) argv.push_back(arg.data());
  return Parse(kFlags, argv);
}

TEST(FlagsTest, TakesBothSpellings) {
  auto line = ParseAll({"model.gguf", "--port=9000", "--max_num_seqs", "4", "--no-overlap"});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(line->positional, std::vector<std::string>{"model.gguf"});
  EXPECT_EQ(line->Get("port"), "9000");
  EXPECT_EQ(ArgumentsFor(kScheduler, kFlags, *line),
            (std::vector<std::string>{"--max-num-seqs=4", "--no-overlap=true"}));
  EXPECT_EQ(ArgumentsFor(kRouter, kFlags, *line), std::vector<std::string>{"--port=9000"});
}

TEST(FlagsTest, DefaultsArePassedOnAndAbsentOnesAreNot) {
  auto line = ParseAll({});
  ASSERT_TRUE(line.ok());
  EXPECT_EQ(ArgumentsFor(kRouter | kWorker, kFlags, *line),
            std::vector<std::string>{"--port=8000"});
}

TEST(FlagsTest, UnknownFlagNamesTheNearest) {
  auto line = ParseAll({"--prot", "1"});
  EXPECT_EQ(line.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Message(line.status()), "unknown flag --prot: did you mean --port?");
}

TEST(FlagsTest, MissingValue) {
  EXPECT_EQ(Message(ParseAll({"--port"}).status()), "--port needs a value: --port N");
}

}  // namespace
}  // namespace penstock::launcher
