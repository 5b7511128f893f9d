// What the HTTP server and its handlers hand each other.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "common/status.h"

namespace penstock::router {

struct HttpRequest {
  std::string method;
  std::string path;  // without the query
  std::string authorization;
  std::string fairness_id;  // header x-gateway-inference-fairness-id: the tenant
  std::string body;
  bool keep_alive = true;
  bool http10 = false;  // knows no chunks
};

// A response in the making. Both calls come on the connection's I/O thread.
class HttpResponse {
 public:
  virtual ~HttpResponse() = default;
  // Appends the bytes that can be written now, head and all. True: that was the last of them.
  virtual bool Produce(std::string* out) = 0;
  // The client left before the end; Produce is not called again.
  virtual void OnDisconnect() {}
};

// Tells a connection that its response has something to produce. Any thread, must not be called
// from Produce.
class HttpNotifier {
 public:
  virtual ~HttpNotifier() = default;
  virtual void Notify() = 0;
};

class HttpHandler {
 public:
  virtual ~HttpHandler() = default;
  // On an I/O thread: must not block. Never null.
  virtual std::shared_ptr<HttpResponse> Handle(HttpRequest request,
                                               std::weak_ptr<HttpNotifier> notifier) = 0;
  // A request that could not be read got this status.
  virtual void OnBadRequest(int status) = 0;
};

// A whole response. `headers` are further header lines, each with its \r\n.
std::string BuildResponse(int status, std::string_view content_type, std::string_view body,
                          bool keep_alive, std::string_view headers = "");
// An OpenAI error, with Retry-After where trying again may help.
std::string BuildError(int status, const absl::Status& error, bool keep_alive,
                       std::string_view headers = "");

// A response that is there already.
class WholeResponse final : public HttpResponse {
 public:
  explicit WholeResponse(std::string bytes) : bytes_(std::move(bytes)) {}
  bool Produce(std::string* out) override {
    *out += bytes_;
    return true;
  }

 private:
  const std::string bytes_;
};

}  // namespace penstock::router
