#include "router/api/grpc/inference_service.h"

#include <utility>

#include "router/api/auth.h"
#include "router/api/grpc/convert.h"
#include "router/api/grpc/generate_call.h"

namespace penstock::router {
namespace {

template <typename Request>
GenerateCall::Parser ParserOf(const grpc::ByteBuffer& bytes) {
  return [bytes]() -> absl::StatusOr<RequestFields> {
    Request request;
    RETURN_IF_ERROR(ParseMessage(bytes, &request));
    return FieldsOf(request);
  };
}

}  // namespace

absl::Status InferenceService::Authorize(const grpc::CallbackServerContext& context) const {
  return CheckApiKey(api_key_, MetadataOf(context, "authorization"));
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::Generate(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  const absl::Status allowed = Authorize(*context);
  if (!allowed.ok()) return GenerateCall::Refuse(service_, context, "Generate", allowed);
  return GenerateCall::Start(service_, context, "Generate", delivery_,
                             ParserOf<v1::GenerateRequest>(*request));
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::Chat(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  const absl::Status allowed = Authorize(*context);
  if (!allowed.ok()) return GenerateCall::Refuse(service_, context, "Chat", allowed);
  return GenerateCall::Start(service_, context, "Chat", delivery_,
                             ParserOf<v1::ChatRequest>(*request));
}

grpc::ServerUnaryReactor* InferenceService::Unary(grpc::CallbackServerContext* context,
                                                  const char* method,
                                                  std::function<absl::Status()> work) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const auto finish = [this, context, reactor, method](const absl::Status& status) {
    AddRetryAfter(status, context);
    service_.metrics().CountGrpc(method, CodeName(status));
    reactor->Finish(GrpcStatus(status));
  };
  if (absl::Status allowed = Authorize(*context); !allowed.ok()) {
    finish(allowed);
  } else if (!service_.workers().Post([finish, work = std::move(work)] { finish(work()); })) {
    finish(ResourceExhausted("too many requests wait to be read: try again later"));
  }
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::GetModel(grpc::CallbackServerContext* context,
                                                     const v1::GetModelRequest*,
                                                     v1::GetModelResponse* response) {
  return Unary(context, "GetModel", [this, response] {
    const ModelLimits limits = service_.limits();
    const Tokenizer& tokenizer = *service_.model().tokenizer;
    response->set_model(limits.names.front());
    response->mutable_aliases()->Add(limits.names.begin() + 1, limits.names.end());
    response->set_max_model_len(limits.max_model_len);
    response->set_vocab_size(limits.vocab_size);
    response->set_bos_token_id(tokenizer.bos_id());
    for (const int32_t id : tokenizer.eos_ids()) response->add_eos_token_ids(id);
    response->set_version(PENSTOCK_VERSION);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* bytes,
                                                     grpc::ByteBuffer* response) {
  return Unary(context, "Tokenize", [this, bytes = *bytes, response]() -> absl::Status {
    v1::TokenizeRequest request;
    RETURN_IF_ERROR(ParseMessage(bytes, &request));
    const ModelLimits limits = service_.limits();
    RETURN_IF_ERROR(CheckModel(request.model(), limits).status());
    std::optional<bool> special;
    if (request.has_add_special_tokens()) special = request.add_special_tokens();
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids, service_.Tokenize(request.text(), special));
    v1::TokenizeResponse reply;
    reply.mutable_token_ids()->Add(ids.begin(), ids.end());
    reply.set_max_model_len(limits.max_model_len);
    SerializeMessage(reply, response);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* bytes,
                                                       grpc::ByteBuffer* response) {
  return Unary(context, "Detokenize", [this, bytes = *bytes, response]() -> absl::Status {
    v1::DetokenizeRequest request;
    RETURN_IF_ERROR(ParseMessage(bytes, &request));
    RETURN_IF_ERROR(CheckModel(request.model(), service_.limits()).status());
    ASSIGN_OR_RETURN(const std::string text,
                     service_.Detokenize({request.token_ids().begin(), request.token_ids().end()}));
    v1::DetokenizeResponse reply;
    reply.set_text(text);
    SerializeMessage(reply, response);
    return absl::OkStatus();
  });
}

}  // namespace penstock::router
