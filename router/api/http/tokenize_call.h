// /tokenize and /detokenize, in vLLM's shapes; the work is done on the worker pool.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "router/api/http/http_message.h"
#include "router/service/service.h"

namespace penstock::router {

// The JSON of the answer. `body` is the request's.
absl::StatusOr<std::string> TokenizeBody(const RouterService& service, const std::string& body);
absl::StatusOr<std::string> DetokenizeBody(const RouterService& service, const std::string& body);

class TokenizeCall final : public HttpResponse, public std::enable_shared_from_this<TokenizeCall> {
 public:
  static std::shared_ptr<HttpResponse> Start(RouterService& service, HttpRequest request,
                                             std::weak_ptr<HttpNotifier> notifier);

  bool Produce(std::string* out) override;

 private:
  TokenizeCall(RouterService& service, HttpRequest request, std::weak_ptr<HttpNotifier> notifier);
  void Run();
  void SetResponse(const absl::StatusOr<std::string>& body);

  RouterService& service_;
  const HttpRequest request_;
  const std::weak_ptr<HttpNotifier> notifier_;
  std::mutex mutex_;
  std::string response_;  // mutex_; empty until it is there
};

}  // namespace penstock::router
