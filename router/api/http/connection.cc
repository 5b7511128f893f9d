#include "router/api/http/connection.h"

#include <boost/asio/write.hpp>
#include <utility>

#include "router/api/fairness_id.h"
#include "router/api/http/io_thread.h"

namespace penstock::router {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;

constexpr size_t kReadBytes = 16 << 10;
constexpr size_t kMaxPipelined = 64 << 10;  // bytes read ahead while a response is made

}  // namespace

Connection::Connection(asio::ip::tcp::socket socket, IoThread& io, HttpHandler& handler,
                       const ConnectionLimits& limits)
    : socket_(std::move(socket)),
      io_(io),
      handler_(handler),
      limits_(limits),
      last_progress_(std::chrono::steady_clock::now()) {}

void Connection::Start() {
  boost::system::error_code ignored;
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
  ResetParser();
  StartRead();
}

void Connection::ResetParser() {
  parser_.emplace();
  parser_->eager(true);
  parser_->body_limit(limits_.max_body_bytes);
  parser_->header_limit(static_cast<uint32_t>(limits_.max_header_bytes));
  continued_ = false;
}

void Connection::StartRead() {
  if (reading_ || state_ == State::kClosed) return;
  if (state_ == State::kResponding && in_.size() >= kMaxPipelined) return;
  reading_ = true;
  socket_.async_read_some(
      in_.prepare(kReadBytes),
      [self = shared_from_this()](const auto& error, size_t size) { self->OnRead(error, size); });
}

void Connection::OnRead(const boost::system::error_code& error, size_t size) {
  reading_ = false;
  if (state_ == State::kClosed) return;
  if (error) return Close();  // gone, or half gone: nobody waits for the response
  last_progress_ = std::chrono::steady_clock::now();
  in_.commit(size);
  if (state_ == State::kLingering) in_.consume(in_.size());
  if (state_ == State::kReading) ParseRequest();
  StartRead();
}

void Connection::ParseRequest() {
  boost::system::error_code error;
  while (in_.size() != 0 && !parser_->is_done() && !error) {
    const size_t used = parser_->put(in_.data(), error);
    in_.consume(used);
    if (used == 0) break;
  }
  if (error == http::error::body_limit) {
    return Refuse(413, InvalidArgument("the body is larger than {} bytes: send less, or start the "
                                       "server with a larger --max-body-mb",
                                       limits_.max_body_bytes));
  }
  if (error == http::error::header_limit) {
    return Refuse(431,
                  InvalidArgument("the header is larger than {} bytes", limits_.max_header_bytes));
  }
  if (error && error != http::error::need_more) {
    return Refuse(400, InvalidArgument("this is not HTTP/1.1: {}", error.message()));
  }
  if (parser_->is_done()) return OnRequest();
  const bool wants_word = parser_->is_header_done() && !continued_ &&
                          parser_->get()[http::field::expect] == "100-continue";
  if (wants_word) {
    continued_ = true;
    out_ = "HTTP/1.1 100 Continue\r\n\r\n";
    Write(/*last=*/false);
  }
}

void Connection::OnRequest() {
  http::request<http::string_body> message = parser_->release();
  HttpRequest request;
  request.method = std::string(message.method_string());
  request.path = std::string(message.target().substr(0, message.target().find('?')));
  request.authorization = std::string(message[http::field::authorization]);
  request.fairness_id = std::string(message[kFairnessIdHeader]);
  request.body = std::move(message.body());
  request.http10 = message.version() < 11;
  request.keep_alive = message.keep_alive() && !request.http10;
  keep_alive_ = request.keep_alive;
  SetState(State::kResponding);
  response_ = handler_.Handle(std::move(request), weak_from_this());
  Advance();
}

void Connection::Refuse(int status, const absl::Status& error) {
  handler_.OnBadRequest(status);
  keep_alive_ = false;
  SetState(State::kResponding);
  response_ = std::make_shared<WholeResponse>(BuildError(status, error, /*keep_alive=*/false));
  Advance();
}

void Connection::Notify() { io_.Enqueue(shared_from_this()); }

void Connection::Advance() {
  if (state_ != State::kResponding || writing_) return;
  out_.clear();
  const bool last = response_->Produce(&out_);
  if (!out_.empty() || last) Write(last);
}

void Connection::Write(bool last) {
  writing_ = true;
  last_write_ = last;
  asio::async_write(
      socket_, asio::buffer(out_),
      [self = shared_from_this()](const auto& error, size_t) { self->OnWritten(error); });
}

void Connection::OnWritten(const boost::system::error_code& error) {
  writing_ = false;
  if (state_ == State::kClosed) return;
  if (error) return Close();
  last_progress_ = std::chrono::steady_clock::now();
  if (last_write_) return FinishResponse();
  Advance();
}

void Connection::FinishResponse() {
  response_ = nullptr;
  last_write_ = false;
  if (!keep_alive_ || io_.stopping()) {
    // What the client still sends is read and dropped, or it might lose the response.
    boost::system::error_code ignored;
    socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
    SetState(State::kLingering);
    in_.consume(in_.size());
    return StartRead();
  }
  SetState(State::kReading);
  ResetParser();
  ParseRequest();  // a pipelined one
  StartRead();
}

void Connection::CheckTime(std::chrono::steady_clock::time_point now) {
  const auto still = now - last_progress_;
  switch (state_) {
    case State::kReading:
      if (parser_->got_some() && still > limits_.request) {
        Refuse(408, absl::DeadlineExceededError("the request did not come in whole in time"));
      } else if (still > limits_.idle) {
        Close();
      }
      break;
    case State::kResponding:
      if (writing_ && still > limits_.write) Close();
      break;
    case State::kLingering:
      if (still > limits_.linger) Close();
      break;
    case State::kClosed:
      break;
  }
}

void Connection::SetState(State state) {
  const int change = (state == State::kResponding) - (state_ == State::kResponding);
  state_ = state;
  if (change != 0) io_.CountResponding(change);
}

void Connection::Close() {
  if (state_ == State::kClosed) return;
  SetState(State::kClosed);
  if (response_ != nullptr) response_->OnDisconnect();
  response_ = nullptr;
  boost::system::error_code ignored;
  socket_.close(ignored);
  io_.Remove(this);
}

}  // namespace penstock::router
