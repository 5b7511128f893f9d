#include "tools/penstock/bench/http_transport.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

namespace penstock::bench {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxErrorText = 400;

}  // namespace

StreamLine ParseStreamLine(std::string_view line) {
  StreamLine result;
  if (!line.starts_with("data:") || line.find('{') == std::string_view::npos) return result;
  // Most lines are a token's: those need no parser.
  const bool usage = line.find("\"usage\":") != std::string_view::npos &&
                     line.find("\"usage\":null") == std::string_view::npos;
  const bool error = line.find("\"error\":") != std::string_view::npos;
  if (!usage && !error) {
    result.has_output = line.find("\"choices\":[{") != std::string_view::npos ||
                        line.find("\"choices\": [{") != std::string_view::npos;
    return result;
  }
  const Json json = Json::parse(line.substr(5), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    result.error = "the server sent an event that is not JSON: " + std::string(line);
    return result;
  }
  if (json.contains("error") && !json["error"].is_null()) result.error = json["error"].dump();
  result.has_output = json.contains("choices") && !json["choices"].empty();
  if (json.contains("usage") && json["usage"].is_object()) {
    result.total_tokens = json["usage"].value("completion_tokens", -1);
    result.prompt_tokens = json["usage"].value("prompt_tokens", -1);
  }
  return result;
}

absl::StatusOr<std::unique_ptr<HttpTransport>> HttpTransport::Connect(
    const ServerOptions& options) {
  std::unique_ptr<HttpTransport> transport(new HttpTransport(options));
  transport->buffer_.resize(1 << 16);
  transport->epoll_ = epoll_create1(EPOLL_CLOEXEC);
  if (transport->epoll_ < 0) return absl::ErrnoToStatus(errno, "epoll_create1");
  RETURN_IF_ERROR(transport->Resolve());
  RETURN_IF_ERROR(transport->AskModel());
  return transport;
}

HttpTransport::~HttpTransport() {
  for (const auto& connection : connections_) CloseSocket(*connection);
  if (epoll_ >= 0) close(epoll_);
}

absl::Status HttpTransport::Resolve() {
  const std::string& address = options_.address;
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon + 1 == address.size()) {
    return InvalidArgument("--http {} must be HOST:PORT", address);
  }
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), address.c_str() + colon + 1, &hints, &found);
  if (error != 0) return InvalidArgument("--http {}: {}", address, gai_strerror(error));
  std::memcpy(&peer_, found->ai_addr, found->ai_addrlen);
  peer_size_ = found->ai_addrlen;
  freeaddrinfo(found);
  return absl::OkStatus();
}

absl::StatusOr<int> HttpTransport::OpenSocket() const {
  const int fd = socket(peer_.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return absl::ErrnoToStatus(errno, "cannot open a socket (see ulimit -n)");
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  if (connect(fd, reinterpret_cast<const sockaddr*>(&peer_), peer_size_) == 0) return fd;
  const std::string reason = strerror(errno);
  close(fd);
  return Unavailable(
      "cannot connect to {}: {}: start a server with penstock serve MODEL, or see --http",
      options_.address, reason);
}

std::string HttpTransport::Head(std::string_view method, std::string_view path,
                                size_t body_size) const {
  std::string head = fmt::format("{} {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n",
                                 method, path, options_.address);
  if (!options_.api_key.empty()) {
    head += fmt::format("Authorization: Bearer {}\r\n", options_.api_key);
  }
  if (body_size > 0) head += fmt::format("Content-Length: {}\r\n", body_size);
  return head + "\r\n";
}

// Blocks until all is written; servers read requests at once.
absl::Status HttpTransport::Write(Connection& connection, std::string_view bytes) const {
  while (!bytes.empty()) {
    const ssize_t written = send(connection.fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return absl::ErrnoToStatus(errno, "cannot send to " + options_.address);
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

absl::Status HttpTransport::AskModel() {
  Connection connection;
  ASSIGN_OR_RETURN(connection.fd, OpenSocket());
  absl::Status status = Write(connection, Head("GET", "/v1/models", 0));
  while (status.ok() && !connection.response.done()) {
    const ssize_t bytes = read(connection.fd, buffer_.data(), buffer_.size());
    if (bytes < 0 && errno == EINTR) continue;
    status = bytes > 0 ? connection.response.Feed({buffer_.data(), static_cast<size_t>(bytes)},
                                                  &connection.body)
                       : connection.response.Close();
  }
  close(connection.fd);
  RETURN_IF_ERROR(status);
  if (connection.response.status() != 200) {
    return FailedPrecondition("{} answered GET /v1/models with HTTP {}: {}", options_.address,
                              connection.response.status(),
                              connection.body.substr(0, kMaxErrorText));
  }
  const Json json = Json::parse(connection.body, nullptr, false);
  if (!json.is_object() || !json.contains("data") || json["data"].empty()) {
    return FailedPrecondition("{} names no model at /v1/models", options_.address);
  }
  const Json& first = json["data"][0];
  model_.name = options_.model.empty() ? first.value("id", "") : options_.model;
  model_.max_model_len = first.value("max_model_len", 0);
  return absl::OkStatus();
}

absl::StatusOr<HttpTransport::Connection*> HttpTransport::Idle() {
  if (idle_.empty()) {
    connections_.push_back(std::make_unique<Connection>());
    idle_.push_back(connections_.back().get());
  }
  Connection* connection = idle_.back();
  idle_.pop_back();
  if (connection->fd >= 0) return connection;
  ASSIGN_OR_RETURN(connection->fd, OpenSocket());
  epoll_event event = {.events = EPOLLIN, .data = {.ptr = connection}};
  if (epoll_ctl(epoll_, EPOLL_CTL_ADD, connection->fd, &event) != 0) {
    return absl::ErrnoToStatus(errno, "epoll_ctl");
  }
  return connection;
}

absl::Status HttpTransport::Start(size_t request, const Prompt& prompt) {
  const Json body = {{"model", model_.name},
                     {"prompt", prompt.ids},
                     {"max_tokens", prompt.output_len},
                     {"temperature", options_.temperature},
                     {"ignore_eos", options_.ignore_eos},
                     {"stream", true},
                     {"stream_options", {{"include_usage", true}}}};
  const std::string text = body.dump();
  ASSIGN_OR_RETURN(Connection* const connection, Idle());
  connection->request = request;
  connection->response = HttpResponse();
  connection->body.clear();
  connection->total_tokens = connection->prompt_tokens = -1;
  connection->error = absl::OkStatus();
  connection->open = true;
  return Write(*connection, Head("POST", "/v1/completions", text.size()) + text);
}

void HttpTransport::CloseSocket(Connection& connection) const {
  if (connection.fd >= 0) close(connection.fd);  // leaves the epoll set by that
  connection.fd = -1;
}

absl::Status HttpTransport::Poll(Clock::time_point deadline, std::vector<Event>* events) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  epoll_event ready[128];
  const int count =
      epoll_wait(epoll_, ready, 128, static_cast<int>(std::clamp<int64_t>(left, 0, 1000)));
  if (count < 0 && errno != EINTR) return absl::ErrnoToStatus(errno, "epoll_wait");
  for (int i = 0; i < count; ++i) Read(*static_cast<Connection*>(ready[i].data.ptr), events);
  return absl::OkStatus();
}

void HttpTransport::Read(Connection& connection, std::vector<Event>* events) {
  const ssize_t bytes = read(connection.fd, buffer_.data(), buffer_.size());
  if (bytes < 0 && errno == EINTR) return;
  const Clock::time_point now = Clock::now();
  if (!connection.open) return CloseSocket(connection);  // an idle one that the server closed
  const absl::Status status =
      bytes > 0
          ? connection.response.Feed({buffer_.data(), static_cast<size_t>(bytes)}, &connection.body)
          : connection.response.Close();
  if (!status.ok()) connection.error = status;
  if (connection.response.status() == 200) TakeBody(connection, now, events);
  if (!status.ok() || connection.response.done()) End(connection, now, events);
}

void HttpTransport::TakeBody(Connection& connection, Clock::time_point now,
                             std::vector<Event>* events) {
  size_t begin = 0;
  for (size_t end; (end = connection.body.find('\n', begin)) != std::string::npos;
       begin = end + 1) {
    const StreamLine line =
        ParseStreamLine(std::string_view(connection.body).substr(begin, end - begin));
    if (line.total_tokens >= 0) connection.total_tokens = line.total_tokens;
    if (line.prompt_tokens >= 0) connection.prompt_tokens = line.prompt_tokens;
    if (!line.error.empty()) connection.error = Internal("{}", line.error);
    if (line.has_output) {
      events->push_back({.request = connection.request, .at = now, .has_output = true});
    }
  }
  connection.body.erase(0, begin);
}

void HttpTransport::End(Connection& connection, Clock::time_point now, std::vector<Event>* events) {
  if (connection.error.ok() && connection.response.status() != 200) {
    connection.error = Internal("HTTP {}: {}", connection.response.status(),
                                connection.body.substr(0, kMaxErrorText));
  }
  if (connection.error.ok() && connection.total_tokens < 0) {
    connection.error = Internal("the stream ended without its usage");
  }
  events->push_back({.request = connection.request,
                     .at = now,
                     .end = true,
                     .total_tokens = connection.total_tokens,
                     .prompt_tokens = connection.prompt_tokens,
                     .error = connection.error});
  connection.open = false;
  if (!connection.response.done() || !connection.response.keep_alive()) CloseSocket(connection);
  idle_.push_back(&connection);
}

}  // namespace penstock::bench
