#include "common/net/wire.h"

#include <charconv>

namespace penstock::net {
namespace {

constexpr int kQueuedRequests = 100'000;  // to a scheduler that is not there

absl::Status BindError(const std::string& endpoint, const zmq::error_t& error) {
  return Unavailable(
      "cannot listen on {}: {}: is another scheduler running there? stop it or choose another "
      "address",
      endpoint, error.what());
}

absl::StatusOr<zmq::socket_t> Bound(zmq::context_t& context, zmq::socket_type type,
                                    const std::string& endpoint) {
  try {
    zmq::socket_t socket(context, type);
    socket.set(zmq::sockopt::linger, 1000);
    socket.set(zmq::sockopt::rcvhwm, 0);
    socket.set(zmq::sockopt::sndhwm, 0);
    if (type == zmq::socket_type::router) {
      socket.set(zmq::sockopt::router_mandatory, true);
      socket.set(zmq::sockopt::router_handover, true);
    }
    socket.bind(endpoint);
    return socket;
  } catch (const zmq::error_t& error) {
    return BindError(endpoint, error);
  }
}

absl::StatusOr<zmq::socket_t> Connected(zmq::context_t& context, zmq::socket_type type,
                                        const std::string& endpoint, const std::string& identity) {
  try {
    zmq::socket_t socket(context, type);
    socket.set(zmq::sockopt::linger, 200);
    socket.set(zmq::sockopt::rcvhwm, 0);
    socket.set(zmq::sockopt::sndhwm, kQueuedRequests);
    socket.set(zmq::sockopt::reconnect_ivl, 20);
    socket.set(zmq::sockopt::reconnect_ivl_max, 500);
    if (!identity.empty()) socket.set(zmq::sockopt::routing_id, identity);
    socket.connect(endpoint);
    return socket;
  } catch (const zmq::error_t& error) {
    return InvalidArgument("cannot connect to {}: {}", endpoint, error.what());
  }
}

template <typename Message>
absl::Status ReceiveMessage(zmq::socket_t& socket, int timeout_ms, Message* message) {
  zmq::message_t bytes;
  try {
    if (timeout_ms == 0) {
      if (!socket.recv(bytes, zmq::recv_flags::dontwait)) return NotFound("no message");
    } else {
      socket.set(zmq::sockopt::rcvtimeo, timeout_ms);
      if (!socket.recv(bytes, zmq::recv_flags::none))
        return NotFound("no message in {} ms", timeout_ms);
    }
  } catch (const zmq::error_t& error) {
    if (error.num() == EINTR) return NotFound("interrupted");
    return Cancelled("{}", error.what());
  }
  if (!message->ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return InvalidArgument("got {} bytes that are not a wire message", bytes.size());
  }
  if (message->version() != kWireVersion) {
    return FailedPrecondition(
        "peer speaks wire version {}, this program {}: run routers and schedulers of one release",
        message->version(), kWireVersion);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<EngineEndpoints> ParseEngineAddress(const std::string& address) {
  if (address.rfind("ipc:///", 0) == 0) return EngineEndpoints{address, address + ".deltas"};
  const size_t colon = address.rfind(':');
  if (address.rfind("tcp://", 0) == 0 && colon > 6) {
    int port = 0;
    const char* end = address.data() + address.size();
    const auto [parsed, error] = std::from_chars(address.data() + colon + 1, end, port);
    if (error == std::errc() && parsed == end && port > 0 && port < 65535) {
      return EngineEndpoints{address, fmt::format("{}:{}", address.substr(0, colon), port + 1)};
    }
  }
  return InvalidArgument(
      "engine address \"{}\" must be tcp://host:port (port and port + 1 are used) or ipc:///path",
      address);
}

absl::StatusOr<RequestReceiver> RequestReceiver::Bind(zmq::context_t& context,
                                                      const EngineEndpoints& endpoints) {
  ASSIGN_OR_RETURN(zmq::socket_t socket,
                   Bound(context, zmq::socket_type::pull, endpoints.requests));
  return RequestReceiver(std::move(socket));
}

absl::Status RequestReceiver::Receive(int timeout_ms, wire::ToScheduler* message) {
  return ReceiveMessage(socket_, timeout_ms, message);
}

absl::StatusOr<DeltaSender> DeltaSender::Bind(zmq::context_t& context,
                                              const EngineEndpoints& endpoints) {
  ASSIGN_OR_RETURN(zmq::socket_t socket,
                   Bound(context, zmq::socket_type::router, endpoints.deltas));
  return DeltaSender(std::move(socket));
}

absl::Status DeltaSender::Send(const std::string& router_id, wire::ToRouter* message) {
  message->set_version(kWireVersion);
  buffer_.clear();
  message->SerializeToString(&buffer_);
  try {
    socket_.send(zmq::buffer(router_id), zmq::send_flags::sndmore | zmq::send_flags::dontwait);
    socket_.send(zmq::buffer(buffer_), zmq::send_flags::dontwait);
  } catch (const zmq::error_t& error) {
    return Unavailable("router {} is not connected: {}", router_id, error.what());
  }
  return absl::OkStatus();
}

absl::StatusOr<RequestSender> RequestSender::Connect(zmq::context_t& context,
                                                     const EngineEndpoints& endpoints) {
  ASSIGN_OR_RETURN(zmq::socket_t socket,
                   Connected(context, zmq::socket_type::push, endpoints.requests, ""));
  return RequestSender(std::move(socket));
}

absl::Status RequestSender::Send(wire::ToScheduler* message) {
  message->set_version(kWireVersion);
  std::string bytes = message->SerializeAsString();
  try {
    if (!socket_.send(zmq::buffer(bytes), zmq::send_flags::dontwait)) {
      return ResourceExhausted("{} messages wait for a scheduler that does not answer",
                               kQueuedRequests);
    }
  } catch (const zmq::error_t& error) {
    return Cancelled("{}", error.what());
  }
  return absl::OkStatus();
}

absl::StatusOr<DeltaReceiver> DeltaReceiver::Connect(zmq::context_t& context,
                                                     const EngineEndpoints& endpoints,
                                                     const std::string& router_id) {
  ASSIGN_OR_RETURN(zmq::socket_t socket,
                   Connected(context, zmq::socket_type::dealer, endpoints.deltas, router_id));
  return DeltaReceiver(std::move(socket));
}

absl::Status DeltaReceiver::Receive(int timeout_ms, wire::ToRouter* message) {
  return ReceiveMessage(socket_, timeout_ms, message);
}

}  // namespace penstock::net
