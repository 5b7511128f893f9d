// A whole engine but for the router: real scheduler and worker processes (null device), a client
// that speaks the wire over sockets. The scheduler checks its accounts after every step. Deaths are
// in engine_death_test.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "common/log.h"
#include "tests/unit/scheduler/engine_fixture.h"

namespace penstock::scheduler {
namespace {

using ::testing::HasSubstr;

TEST_F(EngineTest, StreamsOf256RequestsComeWholeAndInOrder) {
  Start();
  for (uint64_t id = 1; id <= 256; ++id) {
    client_->Submit(RouterClient::MakeSubmit(id, 1 + id % 90, 200 + id % 40));
  }
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  for (const auto& [id, stream] : client_->streams) ExpectWhole(stream);
  ExpectAllFree();
}

TEST_F(EngineTest, WithoutOverlapTheIdsAreTheSame) {
  Start();
  for (uint64_t id = 1; id <= 20; ++id) client_->Submit(RouterClient::MakeSubmit(id, 5 + id, 50));
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  const auto with_overlap = std::move(client_->streams);
  TearDown();
  Start({"--no-overlap", "--max-num-seqs=3", "--max-num-batched-tokens=7"});
  for (uint64_t id = 1; id <= 20; ++id) client_->Submit(RouterClient::MakeSubmit(id, 5 + id, 50));
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  for (const auto& [id, stream] : client_->streams) {
    ExpectWhole(stream);
    EXPECT_EQ(stream.outputs, with_overlap.at(id).outputs);
  }
  ExpectAllFree();
}

TEST_F(EngineTest, AStopIdEndsAStreamAndIsItsLast) {
  Start();
  client_->Submit(RouterClient::MakeSubmit(1, 10, 100));
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  const std::vector<int32_t> whole = client_->streams[1].outputs;
  const auto cut = std::find(whole.begin(), whole.end(), whole[40]);

  wire::Submit submit = RouterClient::MakeSubmit(2, 10, 100);
  submit.mutable_sampling()->set_seed(1);
  submit.mutable_sampling()->add_stop_ids(49000);
  submit.mutable_sampling()->add_stop_ids(whole[40]);
  client_->Submit(submit);
  // Not before min_tokens, and then at its next coming (here: never, but for chance).
  submit.set_id(3);
  submit.mutable_sampling()->set_min_tokens(100);
  client_->Submit(submit);
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  EXPECT_EQ(client_->streams[2].end, wire::END_STOP);
  EXPECT_EQ(client_->streams[2].outputs, std::vector<int32_t>(whole.begin(), cut + 1));
  EXPECT_EQ(client_->streams[3].outputs, whole);
  ExpectAllFree();
}

TEST_F(EngineTest, LogprobsComeWithTheirIdsAndThePromptsWithTheFirst) {
  Start({"--max-num-batched-tokens=256"});  // the prompt comes in chunks
  wire::Submit submit = RouterClient::MakeSubmit(1, 600, 20);
  submit.mutable_sampling()->set_num_top_logprobs(3);
  submit.mutable_sampling()->set_num_prompt_logprobs(2);
  client_->Submit(submit);
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  const ClientStream& stream = client_->streams[1];
  ExpectWhole(stream);
  ASSERT_EQ(stream.logprobs.size(), 20u);
  for (const wire::Logprob& logprob : stream.logprobs) EXPECT_EQ(logprob.top_ids_size(), 3);
  ASSERT_EQ(stream.prompt_logprobs.size(), 599u);
  for (const wire::Logprob& logprob : stream.prompt_logprobs) {
    EXPECT_EQ(logprob.rank(), 1);
    EXPECT_EQ(logprob.top_ids_size(), 2);
  }
  ExpectAllFree();
}

TEST_F(EngineTest, FewPagesPreemptAndNothingIsLost) {
  Start({}, {"--num-kv-pages=24", "--block-size=8", "--max-model-len=160"});
  // It learns that outputs are short, so that it lets in too many of the long ones.
  for (uint64_t id = 101; id <= 600; ++id) client_->Submit(RouterClient::MakeSubmit(id, 1, 3));
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  for (uint64_t id = 1; id <= 40; ++id) {
    client_->Submit(RouterClient::MakeSubmit(id, 1 + id % 30, 100));
  }
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  for (const auto& [id, stream] : client_->streams) {
    ExpectWhole(stream);
    EXPECT_EQ(stream.num_repeated_ids, 0);
  }
  EXPECT_TRUE(client_->WaitStatus([](const wire::Status& s) { return s.num_preemptions() > 0; }));
  ExpectAllFree();
}

TEST_F(EngineTest, ARequestAsLongAsAllPagesEndsByLength) {
  Start({}, {"--num-kv-pages=4", "--block-size=8", "--max-model-len=32"});
  client_->Submit(RouterClient::MakeSubmit(1, 5, 1'000'000));
  client_->Submit(RouterClient::MakeSubmit(2, 31, 5));
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  EXPECT_EQ(client_->streams[1].end, wire::END_LENGTH);
  EXPECT_EQ(client_->streams[1].outputs.size(), 27u);
  EXPECT_EQ(client_->streams[2].outputs.size(), 1u);
  ExpectAllFree();
}

TEST_F(EngineTest, CancelFreesAndOthersGoOn) {
  Start({}, {"--num-kv-pages=4096", "--max-model-len=4096", "--null-step-us=1000"});
  for (uint64_t id = 1; id <= 32; ++id) {
    client_->Submit(RouterClient::MakeSubmit(id, 100, id % 2 == 0 ? 3000 : 300));
  }
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->streams[32].outputs.size() > 5; }));
  for (uint64_t id = 2; id <= 32; id += 2) client_->Cancel({id});
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  EXPECT_EQ(client_->streams.size(), 16u);
  for (const auto& [id, stream] : client_->streams) ExpectWhole(stream);
  ExpectAllFree();
}

TEST_F(EngineTest, CancelInEveryState) {
  Start({"--max-num-seqs=4", "--max-num-batched-tokens=16"},
        {"--num-kv-pages=64", "--max-model-len=1024"});
  for (uint64_t id = 1; id <= 200; ++id) {
    client_->Submit(RouterClient::MakeSubmit(id, 1 + id * 13 % 200, 1 + id % 50));
    if (id % 3 == 0) client_->Cancel({id - id % 7, id});
  }
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  for (const auto& [id, stream] : client_->streams) ExpectWhole(stream);
  ExpectAllFree();
}

TEST_F(EngineTest, BadRequestsFailAloneWithTheLimitNamed) {
  Start({"--arena-mb=1"}, {"--num-kv-pages=16", "--block-size=8", "--max-model-len=128"});
  using Change = void (*)(wire::Submit*);
  const std::vector<std::pair<std::string, Change>> cases = {
      {"no ids", [](wire::Submit* s) { s->clear_ids(); }},
      {"prompt_len 0", [](wire::Submit* s) { s->set_prompt_len(0); }},
      {"prompt_len 11", [](wire::Submit* s) { s->set_prompt_len(11); }},
      {"priority -1 is not in 0..9", [](wire::Submit* s) { s->set_priority(-1); }},
      {"priority 10 is not in 0..9", [](wire::Submit* s) { s->set_priority(10); }},
      {"max_tokens 0", [](wire::Submit* s) { s->mutable_sampling()->set_max_tokens(0); }},
      {"max_tokens -5", [](wire::Submit* s) { s->mutable_sampling()->set_max_tokens(-5); }},
      {"id -1 at position 10",
       [](wire::Submit* s) {
         s->add_ids(-1);
         s->set_prompt_len(11);
       }},
      {"id 49152 at position 10",
       [](wire::Submit* s) {
         s->add_ids(49152);
         s->set_prompt_len(11);
       }},
      {"stop id 99999", [](wire::Submit* s) { s->mutable_sampling()->add_stop_ids(99999); }},
      {"1 bias ids but 0", [](wire::Submit* s) { s->mutable_sampling()->add_bias_ids(1); }},
      {"not finite", [](wire::Submit* s) { s->mutable_sampling()->set_temperature(NAN); }},
      {"21 log-prob", [](wire::Submit* s) { s->mutable_sampling()->set_num_top_logprobs(21); }},
      {"takes 127 and one more",
       [](wire::Submit* s) {
         while (s->ids_size() < 128) s->add_ids(1);
         s->set_prompt_len(128);
       }},
      {"bytes of arena",
       [](wire::Submit* s) {
         for (int i = 0; i < 300'000; ++i) s->mutable_sampling()->add_stop_ids(1);
       }},
  };
  client_->Submit(RouterClient::MakeSubmit(1000, 10, 100));
  uint64_t id = 0;
  for (const auto& [message, change] : cases) {
    wire::Submit submit = RouterClient::MakeSubmit(++id, 10, 10);
    change(&submit);
    client_->Submit(submit);
  }
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  id = 0;
  for (const auto& [message, change] : cases) {
    const ClientStream& stream = client_->streams[++id];
    EXPECT_EQ(stream.end, wire::END_ERROR);
    EXPECT_EQ(stream.error_code, static_cast<uint32_t>(absl::StatusCode::kInvalidArgument));
    EXPECT_THAT(stream.error, HasSubstr(message));
    EXPECT_EQ(stream.num_ends, 1);
  }
  ExpectWhole(client_->streams[1000]);
  ExpectAllFree();
}

TEST_F(EngineTest, ADuplicateIsIgnored) {
  Start();
  const wire::Submit submit = RouterClient::MakeSubmit(1, 10, 300);
  client_->Submit({submit, submit});
  client_->Submit(submit);
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  ExpectWhole(client_->streams[1]);
  EXPECT_EQ(client_->streams[1].num_repeated_ids, 0);
  ExpectAllFree();
}

TEST_F(EngineTest, WhatGotLostIsSentAgain) {
  Start({}, {"--num-kv-pages=4096", "--max-model-len=4096", "--null-step-us=2000"});
  client_->lease_ms = 50;
  for (uint64_t id = 1; id <= 4; ++id) client_->Submit(RouterClient::MakeSubmit(id, 10, 500));
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->streams[1].outputs.size() > 20; }));
  client_->drop_deltas = true;
  const uint64_t messages = client_->num_messages;
  ASSERT_TRUE(client_->PumpUntil([&] { return client_->num_messages > messages + 50; }));
  client_->drop_deltas = false;
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  for (const auto& [id, stream] : client_->streams) {
    ExpectWhole(stream);
    EXPECT_EQ(stream.num_resubmitted, 0);
  }
  ExpectAllFree();
}

TEST_F(EngineTest, ALostEndIsHadAgainByResubmission) {
  Start();
  wire::Submit submit = RouterClient::MakeSubmit(1, 10, 400);
  submit.mutable_sampling()->set_num_top_logprobs(0);
  client_->drop_deltas = true;
  client_->answer_unknown = false;
  client_->Submit(submit);
  ASSERT_TRUE(client_->WaitStatus([](const wire::Status& s) { return s.unknown_ids_size() == 1; }));
  client_->drop_deltas = false;
  client_->answer_unknown = true;
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  ExpectWhole(client_->streams[1]);
  EXPECT_GE(client_->streams[1].num_resubmitted, 1);
  EXPECT_EQ(client_->streams[1].logprobs.size(), 400u);
  ExpectAllFree();
}

TEST_F(EngineTest, WhatALeaseDoesNotNameIsCancelled) {
  Start({}, {"--num-kv-pages=4096", "--max-model-len=4096", "--null-step-us=1000"});
  client_->Submit(RouterClient::MakeSubmit(1, 10, 4000));
  client_->Submit(RouterClient::MakeSubmit(2, 10, 200));
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->streams[1].outputs.size() > 5; }));
  client_->streams.erase(1);
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  ExpectAllFree();
  ExpectWhole(client_->streams[2]);
}

TEST_F(EngineTest, ARouterThatFallsSilentIsFreedOf) {
  Start({"--lease-timeout-ms=600"},
        {"--num-kv-pages=4096", "--max-model-len=4096", "--null-step-us=1000"});
  auto silent = NewClient("router-2");
  ASSERT_TRUE(silent->WaitReady());
  silent->Submit(RouterClient::MakeSubmit(1, 10, 4000));
  ASSERT_TRUE(silent->PumpUntil([&] { return silent->streams[1].outputs.size() > 5; }));
  client_->lease_ms = 100;
  client_->Submit(RouterClient::MakeSubmit(1, 10, 2000));
  ASSERT_TRUE(client_->WaitStatus([](const wire::Status& s) { return s.num_running() == 2; }));
  ASSERT_TRUE(client_->WaitStatus([](const wire::Status& s) { return s.num_running() < 2; }));
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  ExpectWhole(client_->streams[1]);
  ExpectAllFree();
}

TEST_F(EngineTest, GoodbyeFreesAtOnce) {
  Start({}, {"--num-kv-pages=4096", "--max-model-len=4096", "--null-step-us=1000"});
  auto other = NewClient("router-2");
  ASSERT_TRUE(other->WaitReady());
  other->Submit(RouterClient::MakeSubmit(1, 10, 4000));
  ASSERT_TRUE(other->PumpUntil([&] { return other->streams[1].outputs.size() > 5; }));
  other->Goodbye();
  ExpectAllFree();
}

TEST_F(EngineTest, ADrainEndsWhatRunsAndRefusesWhatComes) {
  Start({}, {"--num-kv-pages=4096", "--max-model-len=4096", "--null-step-us=1000"});
  client_->Submit(RouterClient::MakeSubmit(1, 10, 300));
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->streams[1].outputs.size() > 5; }));
  scheduler_.Signal(SIGTERM);
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->status.draining(); }));
  client_->Submit(RouterClient::MakeSubmit(2, 10, 300));
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  EXPECT_EQ(scheduler_.Wait(), 0);
  ExpectWhole(client_->streams[1]);
  EXPECT_EQ(client_->streams[2].error_code, static_cast<uint32_t>(absl::StatusCode::kUnavailable));
  EXPECT_NE(access(shm::Segment::Path(engine_id_).c_str(), F_OK), 0);
}

TEST_F(EngineTest, ASecondSignalEndsADrainAtOnce) {
  Start({}, {"--num-kv-pages=4096", "--max-model-len=8000", "--null-step-us=2000"});
  client_->Submit(RouterClient::MakeSubmit(1, 10, 7000));
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->streams[1].outputs.size() > 5; }));
  scheduler_.Signal(SIGTERM);
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->status.draining(); }));
  scheduler_.Signal(SIGTERM);
  EXPECT_EQ(scheduler_.Wait(), 0);
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  EXPECT_EQ(client_->streams[1].error_code, static_cast<uint32_t>(absl::StatusCode::kUnavailable));
}

TEST_F(EngineTest, WhatCannotBeHadEndsTheSchedulerWithNothingLeftBehind) {
  const std::string segment = shm::Segment::Path(engine_id_);
  for (const std::vector<std::string>& flags :
       std::vector<std::vector<std::string>>{{"--max-num-seqs=300", "--max-num-batched-tokens=200"},
                                             {"--target-itl-ms=-1"},
                                             {"--tensor-parallel-size=0"},
                                             {"--arena-mb=1000000000"},
                                             {"--listen=udp://x"},
                                             {"--listen=tcp://127.0.0.1:x"},
                                             {"stray"}}) {
    ChildProcess scheduler = StartScheduler(engine_id_, address_, flags);
    EXPECT_EQ(scheduler.Wait(), 2) << flags[0];
    EXPECT_NE(access(segment.c_str(), F_OK), 0);
  }
}

TEST_F(EngineTest, AnAddressInUseEndsTheSchedulerWithNothingLeftBehind) {
  zmq::socket_t taken(context_, zmq::socket_type::pull);
  taken.bind("tcp://127.0.0.1:*");
  const std::string address = taken.get(zmq::sockopt::last_endpoint);
  ChildProcess scheduler = StartScheduler(engine_id_, address);
  EXPECT_EQ(scheduler.Wait(), 2);
  EXPECT_NE(access(shm::Segment::Path(engine_id_).c_str(), F_OK), 0);
}

TEST_F(EngineTest, ASecondSchedulerOfTheSameEngineIsRefusedAndTheFirstServesOn) {
  Start();
  ChildProcess second = StartScheduler(engine_id_, address_ + ".other");
  EXPECT_EQ(second.Wait(), 2);
  client_->Submit(RouterClient::MakeSubmit(1, 10, 10));
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  ExpectWhole(client_->streams[1]);
}

TEST_F(EngineTest, ARouterOfAnotherWireVersionIsRefusedAndOthersAreServed) {
  Start();
  zmq::socket_t old(context_, zmq::socket_type::push);
  old.connect(address_);
  wire::ToScheduler message;
  message.set_version(net::kWireVersion + 1);
  message.set_router_id("old");
  *message.add_submit() = RouterClient::MakeSubmit(1, 10, 10);
  old.send(zmq::buffer(message.SerializeAsString()));
  old.send(zmq::buffer(std::string("\xff\xff nonsense")));
  client_->Submit(RouterClient::MakeSubmit(1, 10, 10));
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  ExpectWhole(client_->streams[1]);
  ExpectAllFree();
}

TEST_F(EngineTest, AnIdleEngineTakesNoCpu) {
  Start();
  client_->Submit(RouterClient::MakeSubmit(1, 10, 10));
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  ExpectAllFree();
  // Nothing happens but leases: the engine thread is not switched in for anything else.
  auto switches = [this] {
    std::ifstream status(fmt::format("/proc/{}/status", scheduler_.pid()));
    std::string word;
    long count = 0;
    while (status >> word) {
      if (word == "voluntary_ctxt_switches:") status >> count;
    }
    return count;
  };
  const long before = switches();
  const uint64_t messages = client_->num_messages;
  ASSERT_TRUE(client_->PumpUntil([&] { return client_->num_messages >= messages + 4; }));
  EXPECT_LE(switches() - before, 20);  // four leases, each an awakening; no ticks
}

TEST_F(EngineTest, MetricsAreServed) {
  const std::string port = std::to_string(FreePort());
  Start({"--metrics-port=" + port, "--model-name=tiny"});
  client_->Submit(RouterClient::MakeSubmit(1, 10, 50));
  ASSERT_TRUE(client_->PumpUntil([this] { return client_->AllEnded(); }));
  ExpectAllFree();
  const std::string text = HttpGet(std::stoi(port), "/metrics");
  const std::string labels = fmt::format("{{engine=\"{}\",model_name=\"tiny\"}}", engine_id_);
  for (const char* line :
       {"vllm:num_requests_running{} 0\n", "vllm:num_requests_waiting{} 0\n",
        "vllm:kv_cache_usage_perc{} 0\n", "vllm:prompt_tokens_total{} 10\n",
        "vllm:generation_tokens_total{} 50\n", "vllm:num_preemptions_total{} 0\n",
        "vllm:prefix_cache_queries_total{} 10\n", "vllm:prefix_cache_hits_total{} 0\n",
        "penstock_worker_restarts_total{} 0\n", "vllm:request_queue_time_seconds_count{} 1\n",
        "penstock_step_token_budget{} 512\n", "penstock_device_idle_ratio{} "}) {
    std::string expected = line;
    expected.replace(expected.find("{}"), 2, labels);
    EXPECT_THAT(text, HasSubstr(expected));
  }
  for (const char* name : {"vllm:iteration_tokens_total_count", "penstock_step_seconds_count",
                           "penstock_plan_seconds_count", "num_gpu_blocks=\"4096\""}) {
    EXPECT_THAT(text, HasSubstr(name));
  }
}

}  // namespace
}  // namespace penstock::scheduler
