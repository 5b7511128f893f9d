// A router's links to engines that the test plays.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "router/engine/engine_pool.h"
#include "tests/unit/router/engine/fake_engine.h"

namespace penstock::router {

// Keeps what a request is told.
class Sink final : public TokenSink {
 public:
  SinkAction OnTokens(const TokenDelta& delta) override {
    std::lock_guard lock(mutex_);
    EXPECT_FALSE(ended_) << "ids after the end";
    ids_.insert(ids_.end(), delta.ids.begin(), delta.ids.end());
    if (delta.end != wire::END_NONE) ended_ = true;
    return stop_at_ != 0 && ids_.size() >= stop_at_ ? SinkAction::kStop : SinkAction::kContinue;
  }
  void OnFailure(const absl::Status& status) override {
    std::lock_guard lock(mutex_);
    EXPECT_FALSE(ended_) << "a failure after the end";
    failure_ = status;
    ended_ = true;
  }
  void Flush() override {
    std::lock_guard lock(mutex_);
    flushed_ = ids_.size();
    flushed_end_ = ended_;
    changed_.notify_all();
  }

  void StopAt(size_t count) { stop_at_ = count; }
  // The ids once there are `count`; fails the test after 20 s.
  std::vector<int32_t> WaitIds(size_t count) {
    return Wait([&] { return flushed_ >= count; });
  }
  std::vector<int32_t> WaitEnd() {
    return Wait([&] { return flushed_end_; });
  }
  absl::Status failure() {
    std::lock_guard lock(mutex_);
    return failure_;
  }

 private:
  template <typename Condition>
  std::vector<int32_t> Wait(Condition condition) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, std::chrono::seconds(20), condition));
    return ids_;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<int32_t> ids_;
  size_t flushed_ = 0;
  size_t stop_at_ = 0;
  bool ended_ = false;
  bool flushed_end_ = false;
  absl::Status failure_;
};

inline wire::Submit MakeSubmit() {
  wire::Submit submit;
  for (const int32_t id : {11, 12, 13}) submit.add_ids(id);
  submit.set_prompt_len(3);
  submit.mutable_sampling()->set_max_tokens(100);
  submit.mutable_sampling()->set_seed(42);
  return submit;
}

inline std::shared_ptr<OpenRequest> Open(std::shared_ptr<TokenSink> sink,
                                         wire::Submit submit = MakeSubmit()) {
  auto request = std::make_shared<OpenRequest>();
  request->submit = std::move(submit);
  request->sink = std::move(sink);
  return request;
}

inline LinkOptions Options() {
  return {.router_id = "router-test", .lease_ms = 50, .silent_ms = 20'000, .timeout_ms = 60'000};
}

class EngineLinkTest : public testing::Test {
 protected:
  void Connect(const std::vector<std::string>& addresses, const LinkOptions& options = Options()) {
    auto pool = EnginePool::Connect(addresses, options);
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
  }
  // Connects to engine_ and waits until it counts as ready.
  void ConnectReady() {
    Connect({engine_->address()});
    engine_->BecomeReady();
    WaitReady();
  }
  void WaitReady() {
    for (int i = 0; i < 2000 && !pool_->Ready().ok(); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    ASSERT_TRUE(pool_->Ready().ok()) << pool_->Ready();
  }
  uint64_t Submit(const std::shared_ptr<Sink>& sink, wire::Submit submit = MakeSubmit()) {
    const auto ids = SubmitAll({Open(sink, std::move(submit))});
    EXPECT_TRUE(ids.ok()) << ids.status();
    return ids.ok() ? ids->front() : 0;
  }
  absl::StatusOr<std::vector<uint64_t>> SubmitAll(
      const std::vector<std::shared_ptr<OpenRequest>>& requests) {
    return pool_->Submit(requests);
  }

  std::unique_ptr<FakeEngine> engine_ = std::make_unique<FakeEngine>(1);
  std::shared_ptr<Sink> sink_ = std::make_shared<Sink>();
  std::unique_ptr<EnginePool> pool_;
};

}  // namespace penstock::router
