// Forks of one prompt over the wire, as `n` and best-of make them: real scheduler and worker
// processes; the null device, and a small model on the CPU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/scheduler/engine_fixture.h"
#include "tests/unit/worker/tiny_model.h"

namespace penstock::scheduler {
namespace {

class EngineForkTest : public EngineTest {
 protected:
  // Forks of a prompt of ids below 96, each with a seed of its own.
  static std::vector<wire::Submit> Forks(uint64_t first_id, int count, int prompt_len) {
    std::vector<wire::Submit> forks;
    for (uint64_t id = first_id; id < first_id + count; ++id) {
      wire::Submit submit = RouterClient::MakeSubmit(id, prompt_len, 20);
      for (int i = 0; i < prompt_len; ++i) {
        submit.set_ids(i, static_cast<int32_t>((first_id * 31 + i * 7) % 96));
      }
      submit.mutable_sampling()->set_temperature(0.8f);
      forks.push_back(std::move(submit));
    }
    return forks;
  }
  void RunAll() {
    ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
    for (const auto& [id, stream] : client_->streams) ExpectWhole(stream);
  }
};

TEST_F(EngineForkTest, ThePromptIsComputedOnce) {
  Start();
  client_->Submit(Forks(1, 4, 250));
  RunAll();
  EXPECT_EQ(client_->streams[1].cached_tokens, 0u);
  for (uint64_t id = 2; id <= 4; ++id) EXPECT_EQ(client_->streams[id].cached_tokens, 249u);
  EXPECT_TRUE(client_->WaitStatus([](const wire::Status& status) {
    return status.prefix_queries() == 1000 && status.prefix_hits() == 3 * 249;
  }));
  ExpectAllFree();
}

TEST_F(EngineForkTest, ARequestCanSkipTheCache) {
  Start();
  std::vector<wire::Submit> forks = Forks(1, 3, 250);
  forks[0].set_skip_prefix_cache(true);
  client_->Submit(forks);
  RunAll();
  EXPECT_EQ(client_->streams[1].cached_tokens, 0u);
  EXPECT_EQ(client_->streams[2].cached_tokens, 0u);
  EXPECT_EQ(client_->streams[3].cached_tokens, 249u);
  forks = Forks(10, 2, 250);
  forks[0].set_skip_prefix_cache(true);
  client_->Submit(forks[0]);
  RunAll();
  client_->Submit(forks[1]);
  RunAll();
  EXPECT_EQ(client_->streams[11].cached_tokens, 0u);
  EXPECT_TRUE(client_->WaitStatus(
      [](const wire::Status& status) { return status.prefix_queries() == 3 * 250; }));
  ExpectAllFree();
}

// Few pages and small steps: pages are evicted, requests preempted, prompts computed in chunks.
TEST_F(EngineForkTest, OutputsAreThoseOfRequestsThatShareNothing) {
  worker::TinyModel model({.heads = 4, .kv_heads = 2});
  const std::vector<std::string> worker_flags = {
      "--device=cpu",      "--model=" + model.WriteFile(), "--dtype=float32", "--threads=1",
      "--num-kv-pages=24", "--max-num-batched-tokens=48"};
  const std::vector<std::string> small = {"--max-num-seqs=8", "--max-num-batched-tokens=48"};
  std::vector<wire::Submit> submits;
  for (const int prompt_len : {5, 33, 48, 60, 77, 96}) {
    const auto forks = Forks(1 + submits.size(), 4, prompt_len);
    submits.insert(submits.end(), forks.begin(), forks.end());
  }
  Start(small, worker_flags, 2);
  client_->Submit(submits);
  RunAll();
  EXPECT_TRUE(client_->WaitStatus(
      [](const wire::Status& status) { return status.prefix_hits() > 10 * 30; }));
  ExpectAllFree();
  const auto shared = std::move(client_->streams);
  TearDown();
  std::vector<std::string> apart = small;
  apart.push_back("--no-enable-prefix-caching");
  Start(apart, worker_flags);
  client_->Submit(submits);
  RunAll();
  ASSERT_EQ(client_->streams.size(), shared.size());
  for (const auto& [id, stream] : client_->streams) {
    EXPECT_EQ(stream.outputs, shared.at(id).outputs) << id;
    EXPECT_EQ(stream.cached_tokens, 0u);
  }
  EXPECT_NE(shared.at(1).outputs, shared.at(2).outputs);  // of other seeds, other ids
}

}  // namespace
}  // namespace penstock::scheduler
