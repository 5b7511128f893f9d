#include "router/api/http/completion_call.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <utility>
#include <vector>

#include "router/api/fairness_id.h"
#include "router/tokenizer/utf8.h"

namespace penstock::router {
namespace {

constexpr char kStreamHead[] =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    "Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n";

}  // namespace

std::shared_ptr<HttpResponse> CompletionCall::Start(RouterService& service, ApiKind kind,
                                                    HttpRequest request,
                                                    std::weak_ptr<HttpNotifier> notifier) {
  std::shared_ptr<CompletionCall> call(
      new CompletionCall(service, kind, std::move(request), std::move(notifier)));
  const bool posted = service.workers().Post([call] {
    if (const absl::Status status = call->Begin(); !status.ok()) {
      {
        std::lock_guard lock(call->mutex_);
        call->error_ = status;
      }
      if (const auto notifier = call->notifier_.lock()) notifier->Notify();
    }
  });
  if (!posted) {
    call->error_ = ResourceExhausted("too many requests wait to be read: try again later");
  }
  return call;
}

CompletionCall::CompletionCall(RouterService& service, ApiKind kind, HttpRequest request,
                               std::weak_ptr<HttpNotifier> notifier)
    : service_(service),
      kind_(kind),
      request_(std::move(request)),
      notifier_(std::move(notifier)) {}

absl::Status CompletionCall::Begin() {
  ASSIGN_OR_RETURN(const Json body, ParseObject(request_.body));
  ASSIGN_OR_RETURN(openai_, ParseOpenAi(kind_, body));
  openai_.fields.request_id = openai_.fields.request_id.empty()
                                  ? MakeRequestId(kind_ == ApiKind::kChat ? "chatcmpl" : "cmpl")
                                  : openai_.fields.request_id;
  openai_.fields.arrival = arrival_;
  RETURN_IF_ERROR(SetTenant());
  ASSIGN_OR_RETURN(std::shared_ptr<Generation> generation,
                   service_.Prepare(openai_.fields, weak_from_this(),
                                    openai_.stream ? Delivery::kCoalesced : Delivery::kWhole));
  writer_.emplace(MakeWriter(*generation));
  {
    std::lock_guard lock(mutex_);
    if (left_) return absl::OkStatus();
    generation_ = generation;
  }
  service_.Submit(generation);
  return absl::OkStatus();
}

absl::Status CompletionCall::SetTenant() {
  if (request_.fairness_id.empty()) return absl::OkStatus();
  if (!IsValidUtf8(request_.fairness_id)) {
    return FieldError(kFairnessIdHeader, fmt::format("{} is not valid UTF-8", kFairnessIdHeader));
  }
  openai_.fields.tenant = request_.fairness_id;
  return absl::OkStatus();
}

OpenAiWriter CompletionCall::MakeWriter(const Generation& generation) const {
  const GenerationRequest& request = generation.request();
  ResponseFacts facts{.kind = kind_,
                      .id = request.request_id,
                      .model = request.model,
                      .created = std::time(nullptr),
                      .prompt_tokens = generation.prompt_tokens(),
                      .continuous_usage = openai_.continuous_usage,
                      .logprobs = request.return_logprobs,
                      .echo = request.echo,
                      .n = request.n,
                      .prompt_text = {},
                      .prompt_ids = {}};
  if (request.echo) {
    const auto* text = std::get_if<std::string>(&request.prompt);
    facts.prompt_ids = generation.prompt_ids();
    facts.prompt_text =
        text != nullptr ? *text
                        : generation.tokenizer().Decode(facts.prompt_ids, /*skip_special=*/true);
  }
  return OpenAiWriter(generation.tokenizer(), std::move(facts));
}

void CompletionCall::OnOutputReady() {
  if (const auto notifier = notifier_.lock()) notifier->Notify();
}

bool CompletionCall::Produce(std::string* out) {
  absl::Status error;
  {
    std::lock_guard lock(mutex_);
    if (error_.ok() && generation_ == nullptr) return false;
    error = error_;
  }
  if (!error.ok()) return ProduceError(error, out);
  return openai_.stream ? ProduceStream(out) : ProduceWhole(out);
}

bool CompletionCall::ProduceWhole(std::string* out) {
  std::vector<Output> choices;
  for (Output output; generation_->Take(&output);) {
    if (!output.failure.ok()) return ProduceError(output.failure, out);
    choices.push_back(std::move(output));
  }
  if (choices.empty()) return false;  // they come all at once
  const Usage usage = choices.back().usage;
  std::sort(choices.begin(), choices.end(),
            [](const Output& a, const Output& b) { return a.choice < b.choice; });
  const GenerationRequest& request = generation_->request();
  if (request.num_choices > request.n) KeepBest(request.n, &choices);
  Count(200);
  *out +=
      BuildResponse(200, "application/json", writer_->Body(choices, usage), request_.keep_alive);
  return true;
}

bool CompletionCall::ProduceStream(std::string* out) {
  Output output;
  while (!output.last && generation_->Take(&output)) {  // at most one of each choice waits
    if (!output.failure.ok()) return ProduceError(output.failure, out);
    if (!std::exchange(stream_begun_, true)) {
      *out += kStreamHead;
      if (!request_.keep_alive) *out += "Connection: close\r\n";
      *out += request_.http10 ? "\r\n" : "Transfer-Encoding: chunked\r\n\r\n";
    }
    writer_->AppendChunk(output, &events_);
  }
  if (output.last) {
    if (openai_.include_usage) writer_->AppendUsageChunk(output.usage, &events_);
    events_ += "data: [DONE]\n\n";
    Count(200);
  }
  if (!events_.empty()) AppendEvents(out);
  if (output.last && !request_.http10) *out += "0\r\n\r\n";
  return output.last;
}

bool CompletionCall::ProduceError(const absl::Status& error, std::string* out) {
  const int code = HttpStatusOf(error);
  Count(code);
  if (!stream_begun_) {
    *out += BuildError(code, error, request_.keep_alive);
    return true;
  }
  events_ += "data: " + ErrorBody(error) + "\n\ndata: [DONE]\n\n";
  AppendEvents(out);
  if (!request_.http10) *out += "0\r\n\r\n";
  return true;
}

void CompletionCall::AppendEvents(std::string* out) {
  if (request_.http10) {
    *out += events_;
  } else {
    fmt::format_to(std::back_inserter(*out), "{:x}\r\n", events_.size());
    *out += events_;
    *out += "\r\n";
  }
  events_.clear();
}

void CompletionCall::OnDisconnect() {
  std::shared_ptr<Generation> generation;
  {
    std::lock_guard lock(mutex_);
    left_ = true;
    generation = generation_;
  }
  Count(499);
  if (generation != nullptr) generation->Cancel();
}

void CompletionCall::Count(int code) {
  if (std::exchange(counted_, true)) return;
  service_.metrics().CountHttp(kind_ == ApiKind::kChat ? "/v1/chat/completions" : "/v1/completions",
                               code);
}

}  // namespace penstock::router
