#include "tools/penstock/bench/grpc_transport.h"

#include <algorithm>
#include <utility>

namespace penstock::bench {
namespace {

constexpr auto kConnectTimeout = std::chrono::seconds(5);

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcTransport>> GrpcTransport::Connect(
    const ServerOptions& options) {
  std::unique_ptr<GrpcTransport> transport(new GrpcTransport(options));
  transport->stub_ = v1::Inference::NewStub(
      grpc::CreateChannel(options.address, grpc::InsecureChannelCredentials()));
  RETURN_IF_ERROR(transport->AskModel());
  return transport;
}

GrpcTransport::~GrpcTransport() {
  for (Call* call : calls_) call->context.TryCancel();
  std::vector<Event> ignored;
  void* tag;
  bool ok;
  while (!calls_.empty() && queue_.Next(&tag, &ok)) Advance(static_cast<Call*>(tag), ok, &ignored);
  queue_.Shutdown();
  while (queue_.Next(&tag, &ok)) {
  }
}

void GrpcTransport::Authorise(grpc::ClientContext* context) const {
  if (!options_.api_key.empty()) {
    context->AddMetadata("authorization", "Bearer " + options_.api_key);
  }
}

absl::Status GrpcTransport::AskModel() {
  grpc::ClientContext context;
  Authorise(&context);
  context.set_deadline(std::chrono::system_clock::now() + kConnectTimeout);
  v1::GetModelResponse response;
  const grpc::Status status = stub_->GetModel(&context, {}, &response);
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE ||
      status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
    return Unavailable(
        "{} does not answer: {}: start a server with penstock serve MODEL, or see --grpc",
        options_.address, status.error_message());
  }
  RETURN_IF_ERROR(FromGrpc(status));
  model_ = {.name = options_.model.empty() ? response.model() : options_.model,
            .version = response.version(),
            .vocab_size = response.vocab_size(),
            .max_model_len = response.max_model_len()};
  return absl::OkStatus();
}

absl::Status GrpcTransport::Start(size_t request, const Prompt& prompt) {
  v1::GenerateRequest message;
  message.set_model(model_.name);
  message.mutable_token_ids()->mutable_ids()->Assign(prompt.ids.begin(), prompt.ids.end());
  message.set_return_text(true);       // as users have it, and
  message.set_return_token_ids(true);  // to count them
  v1::SamplingParams& sampling = *message.mutable_sampling();
  sampling.set_max_tokens(prompt.output_len);
  sampling.set_temperature(static_cast<float>(options_.temperature));
  sampling.set_ignore_eos(options_.ignore_eos);
  Call* call = new Call;  // Advance deletes it
  calls_.insert(call);
  call->request = request;
  Authorise(&call->context);
  call->reader = stub_->AsyncGenerate(&call->context, message, &queue_, call);
  return absl::OkStatus();
}

absl::Status GrpcTransport::Poll(Clock::time_point deadline, std::vector<Event>* events) {
  // gRPC has its own idea of clocks.
  auto until = std::chrono::system_clock::now() +
               std::chrono::ceil<std::chrono::microseconds>(deadline - Clock::now());
  void* tag;
  bool ok;
  while (queue_.AsyncNext(&tag, &ok, until) == grpc::CompletionQueue::GOT_EVENT) {
    Advance(static_cast<Call*>(tag), ok, events);
    until = {};  // 1970: only what is there already
  }
  return absl::OkStatus();
}

void GrpcTransport::Advance(Call* call, bool ok, std::vector<Event>* events) {
  if (call->state == Call::kFinishing) {
    events->push_back({.request = call->request,
                       .at = Clock::now(),
                       .end = true,
                       .total_tokens = call->total_tokens,
                       .prompt_tokens = call->prompt_tokens,
                       .error = FromGrpc(call->status)});
    calls_.erase(call);
    delete call;
    return;
  }
  if (call->state == Call::kReading && ok) {
    const v1::GenerateResponse& response = call->response;
    if (response.token_ids_size() > 0) {
      events->push_back({.request = call->request,
                         .at = Clock::now(),
                         .num_tokens = response.token_ids_size(),
                         .has_output = true});
    }
    if (response.has_usage()) {
      call->total_tokens = response.usage().completion_tokens();
      call->prompt_tokens = response.usage().prompt_tokens();
    }
  }
  if (ok) {
    call->state = Call::kReading;
    call->reader->Read(&call->response, call);
  } else {
    call->state = Call::kFinishing;
    call->reader->Finish(&call->status, call);
  }
}

}  // namespace penstock::bench
