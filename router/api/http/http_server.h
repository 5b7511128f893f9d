// Listens for HTTP and spreads connections over I/O threads.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "common/status.h"
#include "router/api/http/connection.h"
#include "router/api/http/io_thread.h"

namespace penstock::router {

struct HttpOptions {
  std::string host;
  int port = 0;  // 0: any free one
  int num_threads = 1;
  ConnectionLimits limits;
};

class HttpServer {
 public:
  // The handler outlives the server. UNAVAILABLE if the port is in use, INVALID_ARGUMENT for a host
  // that is none.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(HttpHandler& handler,
                                                           const HttpOptions& options);
  ~HttpServer();

  int port() const { return port_; }

  // Accepts no more, lets responses in the making end until the deadline, then closes everything.
  // Idempotent.
  void Stop(std::chrono::steady_clock::time_point deadline);

 private:
  HttpServer(HttpHandler& handler, const HttpOptions& options);
  absl::Status Listen();
  void Accept();

  HttpHandler& handler_;
  const HttpOptions options_;
  int port_ = 0;
  size_t next_thread_ = 0;
  std::vector<std::unique_ptr<IoThread>> threads_;
  boost::asio::ip::tcp::acceptor acceptor_;  // on the first thread
  boost::asio::steady_timer accept_retry_;
};

}  // namespace penstock::router
