// How far plans run ahead and how large steps are, on a whole engine but for the router.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "common/log.h"
#include "tests/unit/scheduler/engine_fixture.h"

namespace penstock::scheduler {
namespace {

using ::testing::HasSubstr;

// Half of what a step takes: prompts get the least there is, so that the running stream has its
// token between any two chunks.
TEST_F(EngineTest, ATargetBetweenTokensCutsPromptsSmall) {
  constexpr int kPromptLen = 1280, kNumChunks = kPromptLen / 64;
  const std::string port = std::to_string(FreePort());
  Start({"--target-itl-ms=1", "--metrics-port=" + port},
        {"--num-kv-pages=4096", "--max-model-len=8192", "--null-step-us=2000"});
  client_->Submit(RouterClient::MakeSubmit(1, 10, 8000));
  const ClientStream& first = client_->streams[1];
  ASSERT_TRUE(client_->PumpUntil([&] { return first.outputs.size() > 5; }));
  const size_t before = first.outputs.size();
  client_->Submit(RouterClient::MakeSubmit(2, kPromptLen, 8000 - kPromptLen));
  ASSERT_TRUE(client_->PumpUntil([this] { return !client_->streams[2].outputs.empty(); }));
  EXPECT_GE(first.outputs.size(), before + kNumChunks);
  EXPECT_THAT(
      HttpGet(std::stoi(port), "/metrics"),
      HasSubstr("penstock_step_token_budget{engine=\"" + engine_id_ + "\",model_name=\"\"} 66\n"));
  client_->Cancel({1, 2});
  ExpectAllFree();
}

// Plans are made up to two steps ahead. An id that ends a request is found with one more step under
// way, a cancellation with two.
TEST_F(EngineTest, LateEndsCostNoMoreDiscardedIdsThanStepsInFlight) {
  constexpr int kNumStops = 40, kNumCancels = 40;
  const std::string port = std::to_string(FreePort());
  Start({"--metrics-port=" + port},
        {"--num-kv-pages=8192", "--max-model-len=4096", "--null-step-us=1000"});
  auto counter = [&](const std::string& name) {
    const std::string text = HttpGet(std::stoi(port), "/metrics");
    const size_t line = text.find("\n" + name + "{");
    CHECK(line != std::string::npos);
    return std::stod(text.substr(text.find("} ", line) + 2));
  };
  std::vector<uint64_t> cancelled;
  for (int i = 1; i <= kNumStops + kNumCancels; ++i) {
    wire::Submit submit = RouterClient::MakeSubmit(i, 10 + i, 3000);
    // An id of the null device's comes by and by: one of a thousand each step.
    for (int id = 100; i <= kNumStops && id < 120; ++id) {
      submit.mutable_sampling()->add_stop_ids(id);
    }
    client_->Submit(submit);
    if (i > kNumStops) cancelled.push_back(i);
  }
  auto stopped = [&] {
    for (int i = 1; i <= kNumStops; ++i) {
      if (client_->streams[i].num_ends == 0) return false;
    }
    return true;
  };
  ASSERT_TRUE(client_->PumpUntil(stopped));
  size_t num_taken = 0;
  for (int i = 1; i <= kNumStops; ++i) {
    EXPECT_EQ(client_->streams[i].end, wire::END_STOP);
    num_taken += client_->streams[i].outputs.size();
  }
  const double after_stops = counter("penstock_discarded_tokens_total");
  EXPECT_LE(after_stops, kNumStops);
  EXPECT_GT(after_stops, 0);
  client_->Cancel(cancelled);
  ExpectAllFree();
  EXPECT_LE(counter("penstock_discarded_tokens_total"), kNumStops + 2 * kNumCancels);
  EXPECT_GT(counter("vllm:generation_tokens_total"), num_taken);
}

}  // namespace
}  // namespace penstock::scheduler
