#include "router/api/http/tokenize_call.h"

#include <utility>

#include "router/api/http/json_text.h"
#include "router/api/http/openai_request.h"
#include "router/api/http/openai_response.h"
#include "router/tokenizer/utf8.h"

namespace penstock::router {

absl::StatusOr<std::string> TokenizeBody(const RouterService& service, const std::string& body) {
  ASSIGN_OR_RETURN(const Json object, ParseObject(body));
  JsonFields json(object);
  const std::string model = json.String("model").value_or("");
  const std::optional<std::string> prompt = json.String("prompt");
  const std::optional<bool> special = json.Bool("add_special_tokens");
  const bool generation_prompt = json.Bool("add_generation_prompt").value_or(true);
  const bool strings = json.Bool("return_token_strs").value_or(false);
  const Json* messages = json.Find("messages");
  if (!prompt && messages == nullptr) {
    json.Fail("prompt", "prompt is missing: give a text, or messages");
  }
  RETURN_IF_ERROR(json.status());
  const ModelLimits limits = service.limits();
  RETURN_IF_ERROR(CheckModel(model, limits).status());
  std::vector<int32_t> ids;
  if (messages != nullptr) {
    ASSIGN_OR_RETURN(const ChatPrompt turns, ParseMessages(*messages));
    ASSIGN_OR_RETURN(ids, service.TokenizeChat(turns, generation_prompt));
  } else {
    ASSIGN_OR_RETURN(ids, service.Tokenize(*prompt, special));
  }
  std::string texts = "null";
  if (strings) {
    texts.assign(1, '[');
    for (const int32_t id : ids) {
      if (texts.size() > 1) texts += ',';
      AppendJsonString(ReplaceInvalidUtf8(service.model().tokenizer->TokenBytes(id)), &texts);
    }
    texts += ']';
  }
  return fmt::format("{{\"count\":{},\"max_model_len\":{},\"tokens\":[{}],\"token_strs\":{}}}",
                     ids.size(), limits.max_model_len, fmt::join(ids, ","), texts);
}

absl::StatusOr<std::string> DetokenizeBody(const RouterService& service, const std::string& body) {
  ASSIGN_OR_RETURN(const Json object, ParseObject(body));
  JsonFields json(object);
  const std::string model = json.String("model").value_or("");
  const std::vector<int64_t> ids = json.Integers("tokens");
  if (json.Find("tokens") == nullptr) json.Fail("tokens", "tokens is missing: give token ids");
  RETURN_IF_ERROR(json.status());
  RETURN_IF_ERROR(CheckModel(model, service.limits()).status());
  ASSIGN_OR_RETURN(const std::string text, service.Detokenize(ids));
  return fmt::format("{{\"prompt\":{}}}", JsonString(text));
}

std::shared_ptr<HttpResponse> TokenizeCall::Start(RouterService& service, HttpRequest request,
                                                  std::weak_ptr<HttpNotifier> notifier) {
  std::shared_ptr<TokenizeCall> call(
      new TokenizeCall(service, std::move(request), std::move(notifier)));
  if (!service.workers().Post([call] { call->Run(); })) {
    call->SetResponse(ResourceExhausted("too many requests wait to be read: try again later"));
  }
  return call;
}

TokenizeCall::TokenizeCall(RouterService& service, HttpRequest request,
                           std::weak_ptr<HttpNotifier> notifier)
    : service_(service), request_(std::move(request)), notifier_(std::move(notifier)) {}

void TokenizeCall::Run() {
  SetResponse(request_.path == "/tokenize" ? TokenizeBody(service_, request_.body)
                                           : DetokenizeBody(service_, request_.body));
  if (const auto notifier = notifier_.lock()) notifier->Notify();
}

void TokenizeCall::SetResponse(const absl::StatusOr<std::string>& body) {
  const int status = HttpStatusOf(body.status());
  service_.metrics().CountHttp(request_.path, status);
  std::lock_guard lock(mutex_);
  response_ = body.ok() ? BuildResponse(200, "application/json", *body, request_.keep_alive)
                        : BuildError(status, body.status(), request_.keep_alive);
}

bool TokenizeCall::Produce(std::string* out) {
  std::lock_guard lock(mutex_);
  *out += response_;
  return !response_.empty();
}

}  // namespace penstock::router
