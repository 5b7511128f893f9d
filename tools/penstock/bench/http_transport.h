// OpenAI's streamed completions over HTTP/1.1, prompts as token ids. Works with other servers of
// that API, vLLM's among them.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tools/penstock/bench/http_response.h"
#include "tools/penstock/bench/server_options.h"
#include "tools/penstock/bench/transport.h"

namespace penstock::bench {

class HttpTransport : public Transport {
 public:
  // Asks the server for its model (GET /v1/models). UNAVAILABLE: nobody listens there.
  static absl::StatusOr<std::unique_ptr<HttpTransport>> Connect(const ServerOptions& options);
  ~HttpTransport() override;

  const ServerModel& model() const { return model_; }

  absl::Status Start(size_t request, const Prompt& prompt) override;
  absl::Status Poll(Clock::time_point deadline, std::vector<Event>* events) override;

 private:
  // One request at a time; kept for the next one.
  struct Connection {
    int fd = -1;
    size_t request = 0;
    HttpResponse response;
    std::string body;  // what is not taken yet
    int total_tokens = -1;
    int prompt_tokens = -1;
    absl::Status error;
    bool open = false;  // a request is
  };

  explicit HttpTransport(ServerOptions options) : options_(std::move(options)) {}
  absl::Status Resolve();
  absl::Status AskModel();
  absl::StatusOr<int> OpenSocket() const;
  absl::StatusOr<Connection*> Idle();
  absl::Status Write(Connection& connection, std::string_view bytes) const;
  std::string Head(std::string_view method, std::string_view path, size_t body_size) const;
  void Read(Connection& connection, std::vector<Event>* events);
  void TakeBody(Connection& connection, Clock::time_point now, std::vector<Event>* events);
  void End(Connection& connection, Clock::time_point now, std::vector<Event>* events);
  void CloseSocket(Connection& connection) const;

  const ServerOptions options_;
  sockaddr_storage peer_ = {};
  socklen_t peer_size_ = 0;
  int epoll_ = -1;
  ServerModel model_;
  std::vector<std::unique_ptr<Connection>> connections_;
  std::vector<Connection*> idle_;
  std::vector<char> buffer_;
};

// What one line of an event stream (server-sent events) brings.
struct StreamLine {
  bool has_output = false;
  int total_tokens = -1;
  int prompt_tokens = -1;
  std::string error;  // empty: none
};
StreamLine ParseStreamLine(std::string_view line);

}  // namespace penstock::bench
