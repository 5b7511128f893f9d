// Every path the HTTP API answers.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "router/api/http/http_message.h"
#include "router/service/service.h"

namespace penstock::router {

// Thread-safe: I/O threads call Handle. The service outlives it.
class Routes final : public HttpHandler {
 public:
  // An empty key admits everyone.
  Routes(RouterService& service, std::string api_key);

  std::shared_ptr<HttpResponse> Handle(HttpRequest request,
                                       std::weak_ptr<HttpNotifier> notifier) override;
  void OnBadRequest(int status) override;

 private:
  std::shared_ptr<HttpResponse> HandleGet(const HttpRequest& request);
  std::shared_ptr<HttpResponse> HandlePost(HttpRequest request,
                                           std::weak_ptr<HttpNotifier> notifier);
  std::shared_ptr<HttpResponse> Reply(const HttpRequest& request, int status,
                                      const std::string& body,
                                      const std::string& type = "application/json");
  std::shared_ptr<HttpResponse> ReplyError(const HttpRequest& request, int status,
                                           const absl::Status& error,
                                           const std::string& headers = "");
  std::shared_ptr<HttpResponse> ReplyHealth(const HttpRequest& request, const absl::Status& health);
  std::string ModelJson(const std::string& name) const;

  RouterService& service_;
  const std::string api_key_;
};

}  // namespace penstock::router
