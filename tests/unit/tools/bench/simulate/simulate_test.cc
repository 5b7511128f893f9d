// The simulator's parts: the device model against a report made by hand, traces, whole runs whose
// outcome can be worked out.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

#include "tools/bench/simulate/chart.h"
#include "tools/bench/simulate/run.h"

namespace penstock::simulate {
namespace {

// A decode step takes 4 ms and 10 us a row, an id read 20 ns, a prompt id 25 us.
std::string Report(bool two_lengths) {
  auto row = [](int batch, int input_len) {
    const double ids = batch * (input_len + 50.0);
    return fmt::format(R"({{"batch_size": {}, "input_len": {}, "output_len": 100, "tpot_ms": {}}})",
                       batch, input_len, 4 + 0.01 * batch + 20e-6 * ids);
  };
  std::vector<std::string> latency = {row(1, 100), row(64, 100), row(256, 100)};
  if (two_lengths) latency.insert(latency.end(), {row(64, 2000), row(256, 2000)});
  return fmt::format(
      R"({{"machine": {{"cpu": "c", "gpus": ["g"]}}, "engine": {{"num_kv_pages": 1000,
          "page_size": 16, "max_model_len": 4096}}, "latency": [{}], "prefill": [
          {{"batch_size": 1, "input_len": 400, "time_ms": [14, 13, 99]}},
          {{"batch_size": 1, "input_len": 800, "time_ms": [24, 24, 24]}}]}})",
      fmt::join(latency, ", "));
}

absl::StatusOr<DeviceModel> LoadText(const std::string& text) {
  const std::string path = ::testing::TempDir() + "simulate_test_report.json";
  std::ofstream(path) << text;
  auto model = DeviceModel::Load(path, 20);
  std::remove(path.c_str());
  return model;
}

TEST(DeviceModelTest, IsFittedToTheReport) {
  for (bool two_lengths : {false, true}) {
    const auto model = LoadText(Report(two_lengths));
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_NEAR(model->kv_ns(), 20, 0.1);  // fitted, or as given
    EXPECT_NEAR(model->prefill_us(), 25, 1e-6);
    EXPECT_EQ(model->name(), "g");
    EXPECT_EQ(model->num_pages(), 1000u);
    for (uint32_t rows : {1u, 30u, 64u, 100u, 256u, 1000u}) {
      EXPECT_NEAR(model->StepSeconds(rows, 5000, 0), 1e-3 * (4 + 0.01 * rows + 0.1), 2e-6) << rows;
    }
    EXPECT_NEAR(model->StepSeconds(0, 0, 1000), 1e-3 * (4.01 + 25), 2e-6);
    EXPECT_NEAR(model->StepSeconds(64, 0, 1000), 1e-3 * (4.64 + 25), 2e-6);
  }
}

TEST(DeviceModelTest, BadReportsAreRefused) {
  EXPECT_TRUE(absl::IsNotFound(DeviceModel::Load("/nowhere/at/all.json", 20).status()));
  for (const char* text : {"", "{}", "[1]", "{\"machine\": 3}"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(LoadText(text).status())) << text;
  }
  std::string one = Report(false);
  one.replace(one.find("\"input_len\": 800"), 16, "\"input_len\": 400");
  EXPECT_TRUE(absl::IsInvalidArgument(LoadText(one).status()));
}

TEST(TraceTest, IsWhatItSays) {
  for (const TraceSpec& spec : Traces()) {
    constexpr int kCount = 100'000;
    Trace trace(spec, 3, kCount, 1 << 20), again(spec, 3, kCount, 1 << 20);
    double gaps = 0, prompts = 0, firsts = 0;
    uint32_t longest = 0;
    for (int i = 0; i < kCount; ++i) {
      const TraceItem item = trace.Next();
      const TraceItem same = again.Next();
      ASSERT_EQ(item.prompt_len, same.prompt_len);
      ASSERT_EQ(item.output_len, same.output_len);
      ASSERT_EQ(item.gap, same.gap);
      ASSERT_GE(item.prompt_len, 1 + item.prefix_len);
      ASSERT_LE(item.prefix, spec.num_prefixes);
      ASSERT_LT(item.tenant, spec.num_tenants);
      firsts += item.tenant == 0;
      gaps += item.gap;
      prompts += item.prompt_len;
      longest = std::max(longest, item.output_len);
    }
    // The first tenant sends `flood` times what each of the others does, and all of those as ever.
    const double work = spec.num_tenants - 1 + spec.flood;
    EXPECT_NEAR(gaps / kCount, spec.num_tenants / work, 0.03) << spec.name;
    EXPECT_NEAR(firsts / kCount, spec.flood / work, 0.01) << spec.name;
    const double prompt = spec.prompt_mean + spec.prefix_len;
    EXPECT_NEAR(prompts / kCount / prompt, 1, 0.03) << spec.name;
    EXPECT_LE(longest, spec.max_tokens);
    EXPECT_GT(longest, spec.max_tokens / 2);
  }
}

class RunTest : public ::testing::Test {
 protected:
  RunFigures Run(const char* policy, double rate, uint64_t num_requests = 3000) {
    const auto device = LoadText(Report(false));
    const auto policies = Policies();
    const auto found = std::find_if(policies.begin(), policies.end(),
                                    [&](const PolicySpec& spec) { return spec.name == policy; });
    return Simulate(*device,
                    {.num_pages = num_pages, .max_num_seqs = 256, .target_itl_s = target_itl_s},
                    {&trace, &*found, num_requests, 1, rate, 2.0, 0.1});
  }
  TraceSpec trace = {"t", "", 100, 0.5, 100, 0.5, 1000};
  uint32_t num_pages = 1000;
  double target_itl_s = 0;
};

// One request in ten seconds: nobody waits or shares a step. The prompt takes a step of 4.01 ms and
// 25 us an id, each further id one of 4.01 ms and 20 ns an id read.
TEST_F(RunTest, AloneARequestTakesWhatTheDeviceTakes) {
  const RunFigures figures = Run("look-ahead", 0.1, 1000);
  EXPECT_NEAR(figures.ttft_s.mean, 1e-3 * (4.01 + 0.025 * 100), 3e-4);
  EXPECT_NEAR(figures.tpot_s.mean, 1e-3 * 4.013, 2e-5);
  EXPECT_NEAR(figures.requests_per_s, 0.1, 0.02);
  EXPECT_EQ(figures.good_share, 1);
  EXPECT_EQ(figures.num_preemptions, 0u);
  EXPECT_EQ(figures.num_refused, 0u);
}

// Prompts of 1000 are 29 ms in one step, and a step of 2048 prompt ids 55 ms.
TEST_F(RunTest, ATargetHoldsTheTimeBetweenTokens) {
  trace.prompt_mean = 1000;
  num_pages = 16000;
  const RunFigures fixed = Run("look-ahead", 0);
  EXPECT_GT(fixed.itl_s.Percentile(50), 0.05);
  target_itl_s = 0.02;
  const RunFigures tuned = Run("look-ahead", 0);
  EXPECT_LE(tuned.itl_s.Percentile(99), 0.02 * 1.01);  // the histogram's own error
  EXPECT_GE(tuned.itl_s.Percentile(50), 0.02 * 0.85);  // and prompts take what is left
  EXPECT_GT(tuned.requests_per_s, 0.7 * fixed.requests_per_s);
}

TEST(LogHistogramTest, PercentilesAreRightToAHundredth) {
  LogHistogram histogram;
  EXPECT_EQ(histogram.Percentile(50), 0);
  for (int i = 1; i <= 1000; ++i) histogram.Add(1e-3 * i);
  for (const double percent : {1.0, 50.0, 95.0, 99.0}) {
    EXPECT_NEAR(histogram.Percentile(percent) / (percent / 100), 1, 0.011) << percent;
  }
  histogram.Add(0);
  histogram.Add(1e9);
  EXPECT_EQ(histogram.count(), 1002u);
}

TEST_F(RunTest, FullReservationNeverPreemptsAndLeavesMemoryUnused) {
  const RunFigures reserve = Run("reserve", 0), ahead = Run("look-ahead", 0);
  EXPECT_EQ(reserve.num_preemptions, 0u);
  // 16,000 ids at 1100 each.
  EXPECT_NEAR(reserve.mean_running, 14, 1);
  EXPECT_LT(reserve.page_use, 0.25);
  EXPECT_GT(ahead.page_use, 0.8);
  EXPECT_GT(ahead.requests_per_s, 2 * reserve.requests_per_s);
  EXPECT_LT(ahead.preempted_share, 0.03);
}

TEST_F(RunTest, EveryRequestIsServedOrRefused) {
  for (const PolicySpec& policy : Policies()) {
    for (double rate : {0.0, 30.0, 1e6}) {
      const RunFigures figures = Run(policy.name.c_str(), rate, 6000);
      EXPECT_EQ(figures.num_refused > 0, rate == 1e6) << policy.name;
      EXPECT_EQ(figures.num_ended + figures.num_refused, 6000u) << policy.name;
    }
  }
}

TEST_F(RunTest, TheSameSeedGivesTheSameRun) {
  const RunFigures a = Run("look-ahead", 40), b = Run("look-ahead", 40);
  EXPECT_EQ(a.num_steps, b.num_steps);
  EXPECT_EQ(a.ttft_s.p99, b.ttft_s.p99);
  EXPECT_EQ(a.simulated_s, b.simulated_s);
}

TEST(ChartTest, DrawsEachSeriesAndSurvivesNothing) {
  EXPECT_NE(DrawCharts("nothing", {}, {}).find("</svg>"), std::string::npos);
  Panel panel{"a < b & c", "load", true, {{{1, 10}, {2, 0}, {3, 1000}}, {}}};
  const std::string svg = DrawCharts("t", {"one", "two"}, {{panel, Panel{"empty", "x"}}});
  EXPECT_NE(svg.find("a &lt; b &amp; c"), std::string::npos);
  EXPECT_NE(svg.find(">two<"), std::string::npos);
  size_t circles = 0;
  for (size_t at = 0; (at = svg.find("<circle", at)) != std::string::npos; ++at) ++circles;
  EXPECT_EQ(circles, 2u);  // 0 is not on a logarithmic axis
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
}

}  // namespace
}  // namespace penstock::simulate
