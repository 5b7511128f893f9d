// One HTTP/1.1 connection: reads requests one after another (pipelined ones wait in its buffer),
// writes their responses in order.
//
// A read is always pending, so that a client that leaves is noticed while its response is made. At
// most one write is in flight. Everything happens on the connection's I/O thread but Notify.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "router/api/http/http_message.h"

namespace penstock::router {

class IoThread;

struct ConnectionLimits {
  size_t max_body_bytes = 8 << 20;
  size_t max_header_bytes = 64 << 10;
  std::chrono::seconds idle{120};    // between requests
  std::chrono::seconds request{30};  // without a byte, in the middle of a request
  std::chrono::seconds write{300};   // without a byte taken by a slow reader
  std::chrono::seconds linger{5};    // for the rest of a refused request
};

class Connection final : public HttpNotifier, public std::enable_shared_from_this<Connection> {
 public:
  Connection(boost::asio::ip::tcp::socket socket, IoThread& io, HttpHandler& handler,
             const ConnectionLimits& limits);

  void Start();
  void Notify() override;
  // Writes what the response has, if no write is in flight.
  void Advance();
  // Called every second: closes what has stood still for too long.
  void CheckTime(std::chrono::steady_clock::time_point now);
  void Close();
  bool responding() const { return state_ == State::kResponding; }
  bool closed() const { return state_ == State::kClosed; }

 private:
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;
  enum class State { kReading, kResponding, kLingering, kClosed };

  void StartRead();
  void OnRead(const boost::system::error_code& error, size_t size);
  void ParseRequest();
  void OnRequest();
  // Answers a request that could not be read, and closes.
  void Refuse(int status, const absl::Status& error);
  void Write(bool last);
  void OnWritten(const boost::system::error_code& error);
  void FinishResponse();
  void SetState(State state);
  void ResetParser();

  boost::asio::ip::tcp::socket socket_;
  IoThread& io_;
  HttpHandler& handler_;
  const ConnectionLimits& limits_;
  State state_ = State::kReading;
  boost::beast::flat_buffer in_;
  std::optional<Parser> parser_;
  bool reading_ = false;    // a read is pending
  bool continued_ = false;  // "100 Continue" was sent
  bool keep_alive_ = true;
  std::shared_ptr<HttpResponse> response_;
  std::string out_;  // of the write in flight
  bool writing_ = false;
  bool last_write_ = false;  // the one in flight ends the response
  std::chrono::steady_clock::time_point last_progress_;
};

}  // namespace penstock::router
