#include "router/api/http/routes.h"

#include <map>
#include <utility>

#include "router/api/auth.h"
#include "router/api/http/completion_call.h"
#include "router/api/http/json_text.h"
#include "router/api/http/openai_response.h"
#include "router/api/http/tokenize_call.h"
#include "status_page.h"

namespace penstock::router {
namespace {

constexpr std::string_view kModelPath = "/v1/models/";

struct Route {
  const char* method;
  bool guarded;  // by the API key
};

const std::map<std::string, Route, std::less<>>& Table() {
  static const std::map<std::string, Route, std::less<>> table = {
      {"/", {"GET", false}},
      {"/health", {"GET", false}},
      {"/ready", {"GET", false}},
      {"/metrics", {"GET", false}},
      {"/v1/models", {"GET", true}},
      {"/v1/completions", {"POST", true}},
      {"/v1/chat/completions", {"POST", true}},
      {"/tokenize", {"POST", true}},
      {"/detokenize", {"POST", true}},
  };
  return table;
}

}  // namespace

Routes::Routes(RouterService& service, std::string api_key)
    : service_(service), api_key_(std::move(api_key)) {}

std::shared_ptr<HttpResponse> Routes::Handle(HttpRequest request,
                                             std::weak_ptr<HttpNotifier> notifier) {
  const bool one_model = request.path.compare(0, kModelPath.size(), kModelPath) == 0;
  const auto it = Table().find(one_model ? "/v1/models" : request.path);
  if (it == Table().end()) {
    request.path = "other";  // a metric for each path that is made up would never end
    return ReplyError(request, 404,
                      NotFound("no such path: this server has /v1/chat/completions, "
                               "/v1/completions, /v1/models, /tokenize, /detokenize, /health, "
                               "/ready, /metrics and a page at /"));
  }
  const Route& route = it->second;
  if (request.method != route.method) {
    if (one_model) request.path = "/v1/models";
    return ReplyError(request, 405,
                      InvalidArgument("{} is not allowed on {}: use {}", request.method,
                                      request.path, route.method),
                      fmt::format("Allow: {}\r\n", route.method));
  }
  if (route.guarded) {
    if (const absl::Status allowed = CheckApiKey(api_key_, request.authorization); !allowed.ok()) {
      if (one_model) request.path = "/v1/models";
      return ReplyError(request, 401, allowed);
    }
  }
  if (request.method == "POST") return HandlePost(std::move(request), std::move(notifier));
  return HandleGet(request);
}

std::shared_ptr<HttpResponse> Routes::HandlePost(HttpRequest request,
                                                 std::weak_ptr<HttpNotifier> notifier) {
  if (request.path == "/v1/chat/completions") {
    return CompletionCall::Start(service_, ApiKind::kChat, std::move(request), std::move(notifier));
  }
  if (request.path == "/v1/completions") {
    return CompletionCall::Start(service_, ApiKind::kCompletion, std::move(request),
                                 std::move(notifier));
  }
  return TokenizeCall::Start(service_, std::move(request), std::move(notifier));
}

std::shared_ptr<HttpResponse> Routes::HandleGet(const HttpRequest& request) {
  if (request.path == "/") return Reply(request, 200, kStatusPage, "text/html; charset=utf-8");
  if (request.path == "/health") return ReplyHealth(request, service_.engines().Ready());
  if (request.path == "/ready") return ReplyHealth(request, service_.Ready());
  if (request.path == "/metrics") {
    return Reply(request, 200, service_.metrics().Render(service_.engines().States()),
                 "text/plain; version=0.0.4; charset=utf-8");
  }
  const std::vector<std::string>& names = service_.model().names;
  if (request.path == "/v1/models") {
    std::string models;
    for (const std::string& name : names) {
      if (!models.empty()) models += ',';
      models += ModelJson(name);
    }
    return Reply(request, 200, fmt::format("{{\"object\":\"list\",\"data\":[{}]}}", models));
  }
  HttpRequest counted = request;
  counted.path = "/v1/models";
  const auto name = CheckModel(request.path.substr(kModelPath.size()), service_.limits());
  if (!name.ok()) return ReplyError(counted, 404, name.status());
  return Reply(counted, 200, ModelJson(*name));
}

std::string Routes::ModelJson(const std::string& name) const {
  return fmt::format(
      "{{\"id\":{},\"object\":\"model\",\"created\":{},\"owned_by\":\"penstock\",\"root\":{},"
      "\"parent\":null,\"max_model_len\":{}}}",
      JsonString(name), service_.model().created, JsonString(service_.model().path),
      service_.limits().max_model_len);
}

std::shared_ptr<HttpResponse> Routes::ReplyHealth(const HttpRequest& request,
                                                  const absl::Status& health) {
  if (health.ok()) return Reply(request, 200, "{\"status\":\"ok\"}");
  service_.metrics().CountHttp(request.path, 503);
  const std::string body =
      fmt::format("{{\"status\":\"unavailable\",\"reason\":{}}}", JsonString(Message(health)));
  return std::make_shared<WholeResponse>(
      BuildResponse(503, "application/json", body, request.keep_alive, "Retry-After: 1\r\n"));
}

std::shared_ptr<HttpResponse> Routes::Reply(const HttpRequest& request, int status,
                                            const std::string& body, const std::string& type) {
  service_.metrics().CountHttp(request.path, status);
  return std::make_shared<WholeResponse>(BuildResponse(status, type, body, request.keep_alive));
}

std::shared_ptr<HttpResponse> Routes::ReplyError(const HttpRequest& request, int status,
                                                 const absl::Status& error,
                                                 const std::string& headers) {
  service_.metrics().CountHttp(request.path, status);
  return std::make_shared<WholeResponse>(BuildError(status, error, request.keep_alive, headers));
}

void Routes::OnBadRequest(int status) { service_.metrics().CountHttp("other", status); }

}  // namespace penstock::router
