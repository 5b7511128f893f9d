// One /v1/completions or /v1/chat/completions, from its body to the last byte of its response.
//
// Threads: a worker reads the body and submits; the engine's receive thread says when there is
// output; the connection's I/O thread takes it and writes the JSON.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "router/api/http/http_message.h"
#include "router/api/http/openai_response.h"
#include "router/service/service.h"

namespace penstock::router {

class CompletionCall final : public HttpResponse,
                             public OutputListener,
                             public std::enable_shared_from_this<CompletionCall> {
 public:
  static std::shared_ptr<HttpResponse> Start(RouterService& service, ApiKind kind,
                                             HttpRequest request,
                                             std::weak_ptr<HttpNotifier> notifier);

  bool Produce(std::string* out) override;
  void OnDisconnect() override;
  void OnOutputReady() override;

 private:
  CompletionCall(RouterService& service, ApiKind kind, HttpRequest request,
                 std::weak_ptr<HttpNotifier> notifier);
  absl::Status Begin();  // worker
  absl::Status SetTenant();
  OpenAiWriter MakeWriter(const Generation& generation) const;
  bool ProduceWhole(std::string* out);
  bool ProduceStream(std::string* out);
  // Answers with an error, or, in a stream that has begun, ends it with one.
  bool ProduceError(const absl::Status& error, std::string* out);
  // Appends events_ as an HTTP chunk.
  void AppendEvents(std::string* out);
  void Count(int code);

  RouterService& service_;
  const ApiKind kind_;
  const HttpRequest request_;
  const std::chrono::steady_clock::time_point arrival_ = std::chrono::steady_clock::now();
  const std::weak_ptr<HttpNotifier> notifier_;

  std::mutex mutex_;  // of what follows
  absl::Status error_;
  std::shared_ptr<Generation> generation_;
  bool left_ = false;  // the client

  // Written by the worker before generation_ is, then the I/O thread's.
  OpenAiRequest openai_;
  std::optional<OpenAiWriter> writer_;
  bool stream_begun_ = false;
  bool counted_ = false;
  std::string events_;
};

}  // namespace penstock::router
