#include "tools/penstock/progress.h"

#include <gtest/gtest.h>

#include <string>

namespace penstock::launcher {
namespace {

TEST(ProgressText, FillsWithWhatIsDone) {
  EXPECT_EQ(ProgressText("x", 0, 4, ""), "x [..............................] 0/4");
  EXPECT_EQ(ProgressText("x", 2, 4, "1 s"), "x [###############...............] 2/4 1 s");
  EXPECT_EQ(ProgressText("x", 4, 4, ""), "x [##############################] 4/4");
  EXPECT_EQ(ProgressText("x", 5, 4, ""), "x [##############################] 5/4");
  EXPECT_EQ(ProgressText("x", 0, 0, ""), "x [..............................] 0/0");
}

TEST(ReadinessText, APercentageIsABar) {
  EXPECT_EQ(ReadinessText("engine ipc:///tmp/e is not ready: rank 0 loads weights, 40%"),
            "rank 0 loads weights [############..................] 40/100");
  EXPECT_EQ(ReadinessText("engine tcp://h:1 is not ready: rank 1 loads weights, 100%"),
            "rank 1 loads weights [##############################] 100/100");
}

TEST(ReadinessText, OtherReasonsStandAsTheyAre) {
  EXPECT_EQ(ReadinessText("engine ipc:///tmp/e is not ready: rank 0 starts"), "rank 0 starts");
  for (const std::string text : {"", "%", ", %", "a, b%", "a, 4 %", "a, -4%", "50%"}) {
    EXPECT_EQ(ReadinessText("engine E is not ready: " + text), text);
  }
}

TEST(ReadinessText, IsTheEnginesAlone) {
  EXPECT_EQ(ReadinessText(""), "");
  EXPECT_EQ(ReadinessText("engine ipc:///tmp/e has not answered yet"), "");
  EXPECT_EQ(ReadinessText("this server drains"), "");
}

}  // namespace
}  // namespace penstock::launcher
