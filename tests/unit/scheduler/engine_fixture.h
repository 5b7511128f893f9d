// A whole engine but for the router: real scheduler and worker processes (null device), a client
// that speaks the wire over sockets. All of it ends with the test.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/log.h"
#include "common/shm/segment.h"
#include "tests/unit/scheduler/processes.h"
#include "tests/unit/scheduler/router_client.h"

namespace penstock::scheduler {

// The parameter, where there is one: the number of ranks.
class EngineTest : public ::testing::TestWithParam<int> {
 protected:
  void TearDown() override {
    client_.reset();
    workers_.clear();
    scheduler_.Kill();
    EXPECT_TRUE(shm::Segment::Remove(engine_id_).ok());
    for (const char* suffix : {"", ".deltas"}) unlink((socket_ + suffix).c_str());
  }

  void StartTheScheduler() { scheduler_ = StartScheduler(engine_id_, address_, scheduler_flags_); }
  void StartWorker(int rank) {
    ChildProcess worker = StartNullWorker(engine_id_, rank, worker_flags_);
    if (rank < static_cast<int>(workers_.size())) {
      workers_[rank] = std::move(worker);
    } else {
      workers_.push_back(std::move(worker));
    }
  }
  void Start(std::vector<std::string> scheduler_flags = {},
             std::vector<std::string> worker_flags = {"--num-kv-pages=4096",
                                                      "--max-model-len=4096"},
             int num_ranks = 1) {
    scheduler_flags_ = std::move(scheduler_flags);
    scheduler_flags_.push_back(fmt::format("--tensor-parallel-size={}", num_ranks));
    worker_flags_ = std::move(worker_flags);
    StartTheScheduler();
    for (int rank = 0; rank < num_ranks; ++rank) StartWorker(rank);
    client_ = NewClient("router-1");
    ASSERT_TRUE(client_->WaitReady());
  }
  std::unique_ptr<RouterClient> NewClient(const std::string& id) {
    return std::make_unique<RouterClient>(context_, address_, id);
  }
  // Waits until the scheduler says that nothing waits, runs or holds a page.
  void ExpectAllFree() {
    EXPECT_TRUE(client_->WaitStatus([](const wire::Status& status) {
      return status.num_running() == 0 && status.num_waiting() == 0 && status.kv_cache_usage() == 0;
    }));
  }
  void ExpectWhole(const ClientStream& stream) {
    EXPECT_EQ(stream.num_ends, 1);
    EXPECT_EQ(stream.end, wire::END_LENGTH) << stream.error;
    EXPECT_EQ(static_cast<int>(stream.outputs.size()), stream.submit.sampling().max_tokens());
  }

  const std::string engine_id_ = fmt::format("engine-test-{}", getpid());
  const std::string socket_ = "/tmp/penstock-" + engine_id_;
  const std::string address_ = "ipc://" + socket_;
  std::vector<std::string> scheduler_flags_, worker_flags_;
  zmq::context_t context_;
  ChildProcess scheduler_;
  std::vector<ChildProcess> workers_;
  std::unique_ptr<RouterClient> client_;
};

}  // namespace penstock::scheduler
