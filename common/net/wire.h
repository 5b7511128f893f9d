// Typed ZeroMQ sockets between routers and schedulers (proto/wire.proto), on cppzmq.
//
// A socket belongs to one thread at a time. Delivery is not relied on: leases heal what is lost.
// Messages carry kWireVersion; one of another version is refused with both named.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <zmq.hpp>

#include "common/status.h"
#include "proto/wire.pb.h"

namespace penstock::net {

constexpr uint32_t kWireVersion = 2;
constexpr int kLeaseMs = 500;          // a router's lease comes at least so often
constexpr int kLeaseTimeoutMs = 4000;  // a router silent for so long is gone

// An engine's address is "tcp://host:port" (deltas on port + 1) or "ipc:///path" (deltas on
// /path.deltas).
struct EngineEndpoints {
  std::string requests;
  std::string deltas;
};
absl::StatusOr<EngineEndpoints> ParseEngineAddress(const std::string& address);

// Scheduler's end of requests. Construct with Bind.
class RequestReceiver {
 public:
  // UNAVAILABLE with what to do if the address is in use.
  static absl::StatusOr<RequestReceiver> Bind(zmq::context_t& context,
                                              const EngineEndpoints& endpoints);
  // Blocks for up to timeout_ms (-1: forever). NOT_FOUND: nothing came. CANCELLED: the context was
  // shut down. FAILED_PRECONDITION: a message of another wire version. INVALID_ARGUMENT: not a
  // message.
  absl::Status Receive(int timeout_ms, wire::ToScheduler* message);

 private:
  explicit RequestReceiver(zmq::socket_t socket) : socket_(std::move(socket)) {}
  zmq::socket_t socket_;
};

// Scheduler's end of deltas.
class DeltaSender {
 public:
  static absl::StatusOr<DeltaSender> Bind(zmq::context_t& context,
                                          const EngineEndpoints& endpoints);
  // Queues the message and returns. UNAVAILABLE if that router is not connected. Sets the version.
  absl::Status Send(const std::string& router_id, wire::ToRouter* message);

 private:
  explicit DeltaSender(zmq::socket_t socket) : socket_(std::move(socket)) {}
  zmq::socket_t socket_;
  std::string buffer_;
};

// Router's end of requests. Connects, and connects anew, by itself.
class RequestSender {
 public:
  static absl::StatusOr<RequestSender> Connect(zmq::context_t& context,
                                               const EngineEndpoints& endpoints);
  // Queues the message and returns; it goes out once the scheduler is there. Sets the version.
  // RESOURCE_EXHAUSTED if too many are queued for a scheduler that is not.
  absl::Status Send(wire::ToScheduler* message);

 private:
  explicit RequestSender(zmq::socket_t socket) : socket_(std::move(socket)) {}
  zmq::socket_t socket_;
};

// Router's end of deltas.
class DeltaReceiver {
 public:
  static absl::StatusOr<DeltaReceiver> Connect(zmq::context_t& context,
                                               const EngineEndpoints& endpoints,
                                               const std::string& router_id);
  // As RequestReceiver::Receive.
  absl::Status Receive(int timeout_ms, wire::ToRouter* message);

 private:
  explicit DeltaReceiver(zmq::socket_t socket) : socket_(std::move(socket)) {}
  zmq::socket_t socket_;
};

}  // namespace penstock::net
