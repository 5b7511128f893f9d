#include "tools/penstock/bench/load.h"

#include <gtest/gtest.h>

#include <deque>

namespace penstock::bench {
namespace {

// Answers each request, in the order they came, token by token: one event a Poll.
class EchoTransport : public Transport {
 public:
  absl::Status Start(size_t request, const Prompt& prompt) override {
    open_.push_back({request, prompt.output_len});
    max_open = std::max(max_open, open_.size());
    started.push_back(request);
    return absl::OkStatus();
  }
  absl::Status Poll(Clock::time_point, std::vector<Event>* events) override {
    if (broken) return Aborted("the engine is gone");
    if (silent || open_.empty()) return absl::OkStatus();
    auto& [request, left] = open_.front();
    Event event{.request = request, .at = Clock::now()};
    if (request == fails) {
      event.end = true;
      event.error = Internal("no such luck");
    } else {
      event.num_tokens = 1;
      event.has_output = true;
      event.end = --left == 0;
    }
    events->push_back(event);
    if (event.end) open_.pop_front();
    return absl::OkStatus();
  }

  size_t max_open = 0;
  std::vector<size_t> started;
  size_t fails = SIZE_MAX;
  bool broken = false;
  bool silent = false;

 private:
  std::deque<std::pair<size_t, int>> open_;
};

std::vector<Prompt> Prompts(int count) {
  return MakePrompts(
      {.num_prompts = count, .input_len = 5, .output_len = 4, .vocab_size = 10, .seed = 1});
}

TEST(LoadTest, CountsEveryToken) {
  EchoTransport transport;
  size_t shown_done = 0;
  const auto result =
      RunLoad(transport, Prompts(20),
              {.arrivals = std::vector<double>(20, 0.0),
               .max_concurrency = 3,
               .progress = [&](size_t done, int64_t, double) { shown_done = done; }});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(transport.max_open, 3u);
  EXPECT_EQ(result->max_open, 3);
  EXPECT_EQ(shown_done, 20u);
  const LoadFigures figures = Figures(*result);
  EXPECT_EQ(figures.completed, 20u);
  EXPECT_EQ(figures.failed, 0u);
  EXPECT_EQ(figures.input_tokens, 100);
  EXPECT_EQ(figures.output_tokens, 80);
  EXPECT_EQ(figures.ttft_ms.count, 20u);
  EXPECT_EQ(figures.tpot_ms.count, 20u);
  EXPECT_EQ(figures.itl_ms.count, 60u);
  EXPECT_EQ(figures.e2e_ms.count, 20u);
}

TEST(LoadTest, ArrivalsAreWaitedFor) {
  EchoTransport transport;
  const auto result = RunLoad(transport, Prompts(3), {.arrivals = {0, 0.02, 0.04}});
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(transport.started, (std::vector<size_t>{0, 1, 2}));
  EXPECT_GE(result->requests[1].sent_ms, 20);
  EXPECT_GE(result->requests[2].sent_ms, 40);
}

TEST(LoadTest, OneFailureFailsAlone) {
  EchoTransport transport;
  transport.fails = 1;
  const auto result = RunLoad(transport, Prompts(4), {.arrivals = std::vector<double>(4, 0.0)});
  ASSERT_TRUE(result.ok());
  const LoadFigures figures = Figures(*result);
  EXPECT_EQ(figures.completed, 3u);
  EXPECT_EQ(figures.failed, 1u);
  EXPECT_EQ(figures.first_error, "no such luck");
  EXPECT_EQ(figures.output_tokens, 12);
}

TEST(LoadTest, ALostEngineEndsIt) {
  EchoTransport transport;
  transport.broken = true;
  EXPECT_TRUE(absl::IsAborted(RunLoad(transport, Prompts(1), {.arrivals = {0}}).status()));
}

TEST(LoadTest, SilenceEndsIt) {
  EchoTransport transport;
  transport.silent = true;
  const LoadOptions options{.arrivals = {0}, .stall_timeout_s = 0.01};
  EXPECT_TRUE(absl::IsDeadlineExceeded(RunLoad(transport, Prompts(1), options).status()));
}

TEST(LoadTest, FiguresFollowTheirDefinitions) {
  LoadResult result;
  result.duration_s = 2;
  result.requests = {{.prompt_tokens = 10,
                      .output_tokens = 5,
                      .ttft_ms = 100,
                      .e2e_ms = 500,
                      .gaps_ms = {100, 100, 100, 100}},
                     {.prompt_tokens = 10, .output_tokens = 1, .ttft_ms = 200, .e2e_ms = 200}};
  const LoadFigures figures = Figures(result);
  EXPECT_DOUBLE_EQ(figures.requests_per_s, 1);
  EXPECT_DOUBLE_EQ(figures.output_tokens_per_s, 3);
  EXPECT_DOUBLE_EQ(figures.total_tokens_per_s, 13);
  EXPECT_DOUBLE_EQ(figures.ttft_ms.mean, 150);
  EXPECT_EQ(figures.tpot_ms.count, 1u);  // a single token has none
  EXPECT_DOUBLE_EQ(figures.tpot_ms.mean, 100);
  EXPECT_DOUBLE_EQ(figures.itl_ms.p99, 100);
}

}  // namespace
}  // namespace penstock::bench
