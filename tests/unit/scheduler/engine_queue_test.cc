// Whose turn it is, how many may wait and how long: through real processes.
#include <gmock/gmock.h>

#include <algorithm>

#include "tests/unit/scheduler/engine_fixture.h"

namespace penstock::scheduler {
namespace {

using ::testing::HasSubstr;

TEST_F(EngineTest, AFullQueueRefusesAtOnce) {
  Start({"--max-num-seqs=2", "--max-queued-requests=3"},
        {"--num-kv-pages=64", "--max-model-len=1024", "--null-step-us=2000"});
  std::vector<wire::Submit> submits;
  for (uint64_t id = 1; id <= 10; ++id) submits.push_back(RouterClient::MakeSubmit(id, 5, 50));
  client_->Submit(submits);
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  int refused = 0;
  for (const auto& [id, stream] : client_->streams) {
    if (stream.end != wire::END_ERROR) {
      ExpectWhole(stream);
      continue;
    }
    ++refused;
    EXPECT_EQ(stream.error_code, static_cast<uint32_t>(absl::StatusCode::kResourceExhausted));
    EXPECT_THAT(stream.error, HasSubstr("--max-queued-requests"));
  }
  EXPECT_EQ(refused, 5);
  ExpectAllFree();
}

TEST_F(EngineTest, ARefusalSaysWhenToTryAgain) {
  Start({"--max-num-seqs=1", "--max-queued-requests=20"},
        {"--num-kv-pages=64", "--max-model-len=1024", "--null-step-us=1000"});
  // 20 a second are admitted, about: each takes 50 steps of a millisecond.
  for (uint64_t id = 1; id <= 20; ++id) client_->Submit(RouterClient::MakeSubmit(id, 5, 50));
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->streams[10].num_ends == 1; }));
  std::vector<wire::Submit> submits;
  for (uint64_t id = 101; id <= 140; ++id) submits.push_back(RouterClient::MakeSubmit(id, 5, 50));
  client_->Submit(submits);
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  int refused = 0;
  for (const auto& [id, stream] : client_->streams) {
    if (stream.end != wire::END_ERROR) continue;
    ++refused;
    EXPECT_GE(stream.retry_after_s, 1u);
    EXPECT_LE(stream.retry_after_s, 60u);
  }
  EXPECT_GE(refused, 40 - 20 - 1);
}

TEST_F(EngineTest, AFloodOfATenantOrAClassLeavesRoomForOthers) {
  Start({"--max-num-seqs=1", "--max-queued-requests=8"},
        {"--num-kv-pages=64", "--max-model-len=1024", "--null-step-us=1000"});
  std::vector<wire::Submit> submits;
  for (uint64_t id = 1; id <= 30; ++id) {
    submits.push_back(RouterClient::MakeSubmit(id, 5, 20));
    submits.back().set_tenant("flood");
  }
  for (uint64_t id = 31; id <= 34; ++id) {
    submits.push_back(RouterClient::MakeSubmit(id, 5, 20));
    submits.back().set_tenant("other");
  }
  for (uint64_t id = 35; id <= 38; ++id) {
    submits.push_back(RouterClient::MakeSubmit(id, 5, 20));
    submits.back().set_tenant("flood");
    submits.back().set_priority(1);
  }
  client_->Submit(submits);
  std::vector<uint64_t> order;  // of the first tokens
  ASSERT_TRUE(client_->PumpUntil([&] {
    for (const auto& [id, stream] : client_->streams) {
      if (!stream.outputs.empty() && std::find(order.begin(), order.end(), id) == order.end()) {
        order.push_back(id);
      }
    }
    return client_->AllEnded();
  }));
  int refused = 0;
  for (const auto& [id, stream] : client_->streams) {
    if (id > 30) ExpectWhole(stream);
    refused += stream.end == wire::END_ERROR;
  }
  EXPECT_EQ(refused, 30 - 8 - 1);  // one has a slot, 8 wait
  // The other tenant's are spread among the first of the flood's; the other class is last.
  const auto place = [&](uint64_t id) {
    return std::find(order.begin(), order.end(), id) - order.begin();
  };
  EXPECT_LE(place(34), 9);
  EXPECT_GE(place(35), 9);
  ExpectAllFree();
}

TEST_F(EngineTest, DeadlinesEndWhatWaitsAndWhatRuns) {
  Start({"--max-num-seqs=1"},
        {"--num-kv-pages=1024", "--max-model-len=8192", "--null-step-us=2000"});
  wire::Submit runs = RouterClient::MakeSubmit(1, 5, 8000);
  runs.set_timeout_ms(2000);
  wire::Submit waits = RouterClient::MakeSubmit(2, 5, 10);
  waits.set_timeout_ms(500);
  wire::Submit late = RouterClient::MakeSubmit(3, 5, 10);
  late.set_timeout_ms(-5);
  wire::Submit in_time = RouterClient::MakeSubmit(4, 5, 10);
  in_time.set_timeout_ms(INT64_MAX);
  client_->Submit({runs, waits, late, in_time});
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  for (uint64_t id = 1; id <= 3; ++id) {
    const ClientStream& stream = client_->streams[id];
    EXPECT_EQ(stream.end, wire::END_ERROR);
    EXPECT_EQ(stream.error_code, static_cast<uint32_t>(absl::StatusCode::kDeadlineExceeded));
    EXPECT_EQ(stream.num_ends, 1);
  }
  EXPECT_FALSE(client_->streams[1].outputs.empty());
  EXPECT_TRUE(client_->streams[2].outputs.empty());
  EXPECT_THAT(client_->streams[2].error, HasSubstr("waited"));
  EXPECT_THAT(client_->streams[3].error, HasSubstr("before it came"));
  ExpectWhole(client_->streams[4]);
  ExpectAllFree();
}

}  // namespace
}  // namespace penstock::scheduler
