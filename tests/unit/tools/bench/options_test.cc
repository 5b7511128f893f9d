#include "tools/penstock/bench/options.h"

#include <gtest/gtest.h>

#include <cmath>

namespace penstock::bench {
namespace {

launcher::CommandLine Line(const std::string& a, const std::string& b = "") {
  launcher::CommandLine line;
  line.values = {{"a", a}, {"b", b}};
  return line;
}

TEST(OptionsTest, IntegerLists) {
  EXPECT_EQ(*IntegerList(Line("1,8,256"), "a"), (std::vector<int>{1, 8, 256}));
  EXPECT_TRUE(IntegerList(Line("none"), "a")->empty());
  EXPECT_TRUE(IntegerList(Line(""), "a")->empty());
  for (const char* bad : {"1,", "0", "-1", "x", "1 2", "1.5", ",", "99999999999"}) {
    const absl::Status status = IntegerList(Line(bad), "a").status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << bad;
    EXPECT_EQ(Message(status).rfind("--a ", 0), 0u) << status;
  }
}

TEST(OptionsTest, Shapes) {
  const auto shapes = ShapeList(Line("1x512,16x2048"), "a");
  ASSERT_EQ(shapes->size(), 2u);
  EXPECT_EQ((*shapes)[1].batch_size, 16);
  EXPECT_EQ((*shapes)[1].input_len, 2048);
  for (const char* bad : {"512", "1x", "x1", "0x5", "1x2x3"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ShapeList(Line(bad), "a").status())) << bad;
  }
}

TEST(OptionsTest, Rates) {
  EXPECT_TRUE(std::isinf(*Rate(Line("inf"), "a")));
  EXPECT_DOUBLE_EQ(*Rate(Line("2.5"), "a"), 2.5);
  for (const char* bad : {"0", "-1", "nan", "fast", ""}) {
    EXPECT_TRUE(absl::IsInvalidArgument(Rate(Line(bad), "a").status())) << bad;
  }
}

TEST(OptionsTest, LoadShapesPairUp) {
  const auto pairs = LoadShapes(Line("1,16", "20,160"), "a", "b");
  ASSERT_EQ(pairs->size(), 2u);
  EXPECT_EQ((*pairs)[1].max_concurrency, 16);
  EXPECT_EQ((*pairs)[1].num_prompts, 160);
  EXPECT_EQ((*LoadShapes(Line("1,16", "20"), "a", "b"))[1].num_prompts, 20);
  const auto unlimited = LoadShapes(Line("none", "20"), "a", "b");
  ASSERT_EQ(unlimited->size(), 1u);
  EXPECT_EQ((*unlimited)[0].max_concurrency, 0);
  EXPECT_FALSE(LoadShapes(Line("1,16", "1,2,3"), "a", "b").ok());
  EXPECT_FALSE(LoadShapes(Line("1", "none"), "a", "b").ok());
}

}  // namespace
}  // namespace penstock::bench
