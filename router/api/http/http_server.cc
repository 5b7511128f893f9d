#include "router/api/http/http_server.h"

#include <boost/asio/post.hpp>
#include <utility>

#include "common/log.h"

namespace penstock::router {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;

std::vector<std::unique_ptr<IoThread>> MakeThreads(int count) {
  std::vector<std::unique_ptr<IoThread>> threads;
  for (int i = 0; i < count; ++i) threads.push_back(std::make_unique<IoThread>());
  return threads;
}

}  // namespace

HttpServer::HttpServer(HttpHandler& handler, const HttpOptions& options)
    : handler_(handler),
      options_(options),
      threads_(MakeThreads(options.num_threads)),
      acceptor_(threads_.front()->context()),
      accept_retry_(threads_.front()->context()) {}

HttpServer::~HttpServer() { Stop(std::chrono::steady_clock::now()); }

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(HttpHandler& handler,
                                                              const HttpOptions& options) {
  std::unique_ptr<HttpServer> server(new HttpServer(handler, options));
  RETURN_IF_ERROR(server->Listen());
  asio::post(server->threads_.front()->context(), [s = server.get()] { s->Accept(); });
  return server;
}

absl::Status HttpServer::Listen() {
  boost::system::error_code error;
  tcp::resolver resolver(threads_.front()->context());
  const auto found =
      resolver.resolve(options_.host, std::to_string(options_.port), tcp::resolver::passive, error);
  if (error || found.empty()) {
    return InvalidArgument("--host {} is not an address of this machine: {}", options_.host,
                           error.message());
  }
  const tcp::endpoint endpoint = found.begin()->endpoint();
  acceptor_.open(endpoint.protocol(), error);
  if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor_.bind(endpoint, error);
  if (!error) acceptor_.listen(4096, error);
  if (error) {
    return Unavailable(
        "cannot listen on {}:{} for HTTP: {}: stop what uses the port, or choose "
        "another one with --port",
        options_.host, options_.port, error.message());
  }
  port_ = acceptor_.local_endpoint().port();
  return absl::OkStatus();
}

void HttpServer::Accept() {
  IoThread& io = *threads_[next_thread_++ % threads_.size()];
  acceptor_.async_accept(
      io.context(), [this, &io](const boost::system::error_code& error, tcp::socket socket) {
        if (error == asio::error::operation_aborted || !acceptor_.is_open()) return;
        if (error) {  // out of file descriptors, most likely: connections that end bring some back
          spdlog::warn("msg=\"cannot accept a connection\" reason=\"{}\"", error.message());
          accept_retry_.expires_after(std::chrono::milliseconds(100));
          accept_retry_.async_wait([this](const boost::system::error_code& stopped) {
            if (!stopped) Accept();
          });
          return;
        }
        auto connection =
            std::make_shared<Connection>(std::move(socket), io, handler_, options_.limits);
        asio::post(io.context(), [&io, connection] { io.Add(connection); });
        Accept();
      });
}

void HttpServer::Stop(std::chrono::steady_clock::time_point deadline) {
  asio::post(threads_.front()->context(), [this] {
    boost::system::error_code ignored;
    acceptor_.close(ignored);
    accept_retry_.cancel();
  });
  for (const auto& thread : threads_) thread->CloseIdle();
  for (const auto& thread : threads_) thread->WaitUntilQuiet(deadline);
  // The others first: the first one's accepting hands them connections.
  for (auto it = threads_.rbegin(); it != threads_.rend(); ++it) (*it)->Stop();
}

}  // namespace penstock::router
