// A scheduler's end of the wire, over real sockets, that a test moves step by step: what it
// receives it keeps, what it sends the test says.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/net/wire.h"

namespace penstock::router {

class FakeEngine {
 public:
  explicit FakeEngine(uint64_t epoch, std::string address = NewAddress())
      : address_(std::move(address)), epoch_(epoch) {
    const net::EngineEndpoints endpoints = *net::ParseEngineAddress(address_);
    receiver_ =
        std::make_unique<net::RequestReceiver>(*net::RequestReceiver::Bind(context_, endpoints));
    sender_ = std::make_unique<net::DeltaSender>(*net::DeltaSender::Bind(context_, endpoints));
  }

  static std::string NewAddress() {
    static int number = 0;
    return "ipc://" + testing::TempDir() + "link_test_" + std::to_string(getpid()) + "_" +
           std::to_string(number++);
  }
  const std::string& address() const { return address_; }

  // The next message for which `wanted` holds; others before it are dropped. Fails the test after
  // 20 s.
  wire::ToScheduler Receive(const std::function<bool(const wire::ToScheduler&)>& wanted) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (std::chrono::steady_clock::now() < deadline) {
      wire::ToScheduler message;
      if (!receiver_->Receive(100, &message).ok()) continue;
      router_id_ = message.router_id();
      if (wanted(message)) return message;
    }
    ADD_FAILURE() << "nothing of the kind came within 20 s";
    return {};
  }
  wire::Lease ReceiveLease() {
    return Receive([](const auto& m) { return m.has_lease(); }).lease();
  }
  wire::Submit ReceiveSubmit() {
    return Receive([](const auto& m) { return m.submit_size() != 0; }).submit(0);
  }

  // Until the router is connected.
  void Send(wire::ToRouter message) {
    message.set_epoch(epoch_);
    message.set_engine_id("fake");
    while (!sender_->Send(router_id_, &message).ok()) {
      wire::ToScheduler ignored;
      (void)receiver_->Receive(10, &ignored);
    }
  }
  void SendStatus(const wire::Lease& lease, bool ready, std::vector<uint64_t> unknown = {},
                  const std::string& reason = "") {
    wire::ToRouter message;
    wire::Status* status = message.mutable_status();
    status->set_lease_sequence(lease.sequence());
    status->set_ready(ready);
    status->set_not_ready_reason(reason);
    status->set_max_model_len(4096);
    status->mutable_unknown_ids()->Add(unknown.begin(), unknown.end());
    Send(message);
  }
  void BecomeReady() { SendStatus(ReceiveLease(), true); }
  void SendIds(uint64_t id, uint32_t first, const std::vector<int32_t>& ids,
               wire::EndReason end = wire::END_NONE) {
    wire::ToRouter message;
    wire::Deltas* deltas = message.mutable_deltas();
    deltas->add_id(id);
    deltas->add_first(first);
    deltas->add_count(static_cast<uint32_t>(ids.size()));
    deltas->mutable_token_ids()->Add(ids.begin(), ids.end());
    if (end != wire::END_NONE) deltas->add_end(end);
    Send(message);
  }
  void SendError(uint64_t id, absl::StatusCode code, const std::string& error,
                 uint32_t retry_after_s = 0) {
    wire::ToRouter message;
    wire::Deltas* deltas = message.mutable_deltas();
    deltas->add_id(id);
    deltas->add_first(0);
    deltas->add_count(0);
    deltas->add_end(wire::END_ERROR);
    wire::Extra* extra = deltas->add_extra();
    extra->set_error_code(static_cast<uint32_t>(code));
    extra->set_error(error);
    extra->set_retry_after_s(retry_after_s);
    Send(message);
  }

 private:
  const std::string address_;
  const uint64_t epoch_;
  zmq::context_t context_{1};
  std::unique_ptr<net::RequestReceiver> receiver_;
  std::unique_ptr<net::DeltaSender> sender_;
  std::string router_id_;
};

}  // namespace penstock::router
