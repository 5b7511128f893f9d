// An engine's ZeroMQ wire, spoken as a router speaks it: ids in, ids out, leases
// (proto/wire.proto).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>
#include <zmq.hpp>

#include "common/net/wire.h"
#include "tools/penstock/bench/transport.h"

namespace penstock::bench {

class EngineTransport : public Transport {
 public:
  // Connects in the background. INVALID_ARGUMENT: a bad address.
  static absl::StatusOr<std::unique_ptr<EngineTransport>> Connect(const std::string& address);
  ~EngineTransport() override;  // says goodbye

  // Waits until the engine is ready. `waiting(reason)` is called a few times a second, with why it
  // is not; an error of it ends the wait. UNAVAILABLE: a worker died.
  absl::Status WaitUntilReady(const std::function<absl::Status(const std::string&)>& waiting);

  // What the engine last said.
  const wire::Status& status() const { return status_; }
  // Asks for a fresh status and waits for it. Only while no request is open.
  absl::Status RefreshStatus();

  // Requests started between two Polls go out in one message, so that the engine sees a batch at
  // once.
  absl::Status Start(size_t request, const Prompt& prompt) override;
  // ABORTED: a worker died, or the engine was started anew; figures would mean nothing.
  absl::Status Poll(Clock::time_point deadline, std::vector<Event>* events) override;

 private:
  struct OpenRequest {
    size_t request = 0;
    uint32_t num_received = 0;
  };

  EngineTransport(std::unique_ptr<zmq::context_t> context, net::RequestSender sender,
                  net::DeltaReceiver receiver, std::string router_id);
  absl::Status Send(wire::ToScheduler* message);
  absl::Status SendLease();
  absl::Status Handle(const wire::ToRouter& message, std::vector<Event>* events);
  absl::Status HandleDeltas(const wire::Deltas& deltas, std::vector<Event>* events);
  absl::Status HandleStatus(const wire::Status& status);

  std::unique_ptr<zmq::context_t> context_;  // before its sockets
  net::RequestSender sender_;
  net::DeltaReceiver receiver_;
  const std::string router_id_;
  wire::ToScheduler submits_;  // to be sent by the next Poll
  wire::ToRouter message_;     // kept for its memory
  std::unordered_map<uint64_t, OpenRequest> open_;
  uint64_t next_id_ = 1;
  uint64_t lease_sequence_ = 0;
  Clock::time_point next_lease_;
  uint64_t epoch_ = 0;
  bool was_ready_ = false;
  wire::Status status_;
};

}  // namespace penstock::bench
