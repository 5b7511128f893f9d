#include "router/api/grpc/convert.h"

#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/support/slice.h>

#include <optional>

#include "proto/status_details.pb.h"
#include "router/engine/retry_after.h"

namespace penstock::router {
namespace {

template <typename T, typename U>
void Set(bool has, T value, std::optional<U>* out) {
  if (has) *out = value;
}

void FillSampling(const v1::SamplingParams& from, RequestFields* to) {
  Set(from.has_temperature(), from.temperature(), &to->temperature);
  Set(from.has_top_p(), from.top_p(), &to->top_p);
  Set(from.has_top_k(), from.top_k(), &to->top_k);
  Set(from.has_min_p(), from.min_p(), &to->min_p);
  Set(from.has_repetition_penalty(), from.repetition_penalty(), &to->repetition_penalty);
  Set(from.has_presence_penalty(), from.presence_penalty(), &to->presence_penalty);
  Set(from.has_frequency_penalty(), from.frequency_penalty(), &to->frequency_penalty);
  Set(from.has_n(), from.n(), &to->n);
  Set(from.has_seed(), from.seed(), &to->seed);
  Set(from.has_max_tokens(), from.max_tokens(), &to->max_tokens);
  Set(from.has_min_tokens(), from.min_tokens(), &to->min_tokens);
  Set(from.has_logprobs(), from.logprobs(), &to->logprobs);
  Set(from.has_prompt_logprobs(), from.prompt_logprobs(), &to->prompt_logprobs);
  to->stop.assign(from.stop().begin(), from.stop().end());
  to->stop_token_ids.assign(from.stop_token_ids().begin(), from.stop_token_ids().end());
  for (const auto& [id, bias] : from.logit_bias()) to->logit_bias.emplace_back(id, bias);
  to->ignore_eos = from.ignore_eos();
  to->include_stop = from.include_stop();
  if (from.has_skip_special_tokens()) to->skip_special_tokens = from.skip_special_tokens();
}

template <typename Request>
RequestFields CommonFields(const Request& request) {
  RequestFields fields;
  fields.model = request.model();
  fields.request_id = request.request_id();
  FillSampling(request.sampling(), &fields);
  fields.return_token_ids = request.return_token_ids();
  fields.return_text = request.return_text() || !request.return_token_ids();
  fields.priority = request.priority();
  Set(request.has_timeout_ms(), request.timeout_ms(), &fields.timeout_ms);
  fields.cache_salt = request.cache_salt();
  fields.skip_prefix_cache = request.skip_prefix_cache();
  return fields;
}

void FillLogprob(const TokenLogprob& from, v1::TokenLogprob* to) {
  to->set_token_id(from.id);
  to->set_logprob(from.logprob);
  to->set_rank(from.rank);
  for (const auto& [id, logprob] : from.top) {
    v1::TopLogprob* top = to->add_top();
    top->set_token_id(id);
    top->set_logprob(logprob);
  }
}

}  // namespace

RequestFields FieldsOf(const v1::GenerateRequest& request) {
  RequestFields fields = CommonFields(request);
  if (request.has_text()) {
    fields.prompt = request.text();
  } else if (request.has_token_ids()) {
    const auto& ids = request.token_ids().ids();
    fields.prompt = TokenPrompt(ids.begin(), ids.end());
  }
  if (request.has_add_special_tokens()) fields.add_special_tokens = request.add_special_tokens();
  return fields;
}

RequestFields FieldsOf(const v1::ChatRequest& request) {
  RequestFields fields = CommonFields(request);
  ChatPrompt turns;
  for (const v1::ChatMessage& message : request.messages()) {
    turns.push_back({message.role(), message.content()});
  }
  fields.prompt = std::move(turns);
  if (request.has_add_generation_prompt()) {
    fields.add_generation_prompt = request.add_generation_prompt();
  }
  return fields;
}

void FillResponse(const Output& output, bool text, v1::GenerateResponse* response) {
  response->Clear();
  response->set_choice(output.choice);
  if (text) response->set_text(output.text);
  response->mutable_token_ids()->Add(output.ids.begin(), output.ids.end());
  for (const TokenLogprob& from : output.logprobs) FillLogprob(from, response->add_logprobs());
  for (const TokenLogprob& from : output.prompt_logprobs) {
    FillLogprob(from, response->add_prompt_logprobs());
  }
  if (output.finish == Finish::kNone) return;
  response->set_finish_reason(output.finish == Finish::kStop ? v1::FINISH_REASON_STOP
                                                             : v1::FINISH_REASON_LENGTH);
  if (output.stop_token_id >= 0) {
    response->set_stop_reason(std::to_string(output.stop_token_id));
  } else {
    response->set_stop_reason(output.stop_string);
  }
  if (!output.last) return;
  response->mutable_usage()->set_completion_tokens(output.usage.completion_tokens);
  response->mutable_usage()->set_cached_tokens(output.usage.cached_tokens);
}

std::string MetadataOf(const grpc::CallbackServerContext& context, const char* name) {
  const auto it = context.client_metadata().find(name);
  if (it == context.client_metadata().end()) return "";
  return {it->second.data(), it->second.size()};
}

void AddRetryAfter(const absl::Status& status, grpc::CallbackServerContext* context) {
  const uint32_t seconds = RetryAfter(status);
  if (seconds != 0) context->AddTrailingMetadata("retry-after", std::to_string(seconds));
}

grpc::Status GrpcStatus(const absl::Status& status) {
  // absl's codes are gRPC's.
  const auto code = static_cast<grpc::StatusCode>(status.code());
  const uint32_t seconds = RetryAfter(status);
  if (seconds == 0) return grpc::Status(code, Message(status));
  details::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(seconds);
  details::Status details;
  details.set_code(code);
  details.set_message(Message(status));
  google::protobuf::Any* any = details.add_details();
  any->set_type_url("type.googleapis.com/google.rpc.RetryInfo");
  retry.SerializeToString(any->mutable_value());
  return grpc::Status(code, Message(status), details.SerializeAsString());
}

const char* CodeName(const absl::Status& status) {
  static constexpr const char* kNames[] = {"OK",
                                           "CANCELLED",
                                           "UNKNOWN",
                                           "INVALID_ARGUMENT",
                                           "DEADLINE_EXCEEDED",
                                           "NOT_FOUND",
                                           "ALREADY_EXISTS",
                                           "PERMISSION_DENIED",
                                           "RESOURCE_EXHAUSTED",
                                           "FAILED_PRECONDITION",
                                           "ABORTED",
                                           "OUT_OF_RANGE",
                                           "UNIMPLEMENTED",
                                           "INTERNAL",
                                           "UNAVAILABLE",
                                           "DATA_LOSS",
                                           "UNAUTHENTICATED"};
  const int code = static_cast<int>(status.code());
  return code >= 0 && code < static_cast<int>(std::size(kNames)) ? kNames[code] : "UNKNOWN";
}

absl::Status ParseMessage(const grpc::ByteBuffer& bytes, google::protobuf::Message* message) {
  grpc::ByteBuffer copy = bytes;  // of the handle: parsing takes it
  if (grpc::GenericDeserialize<grpc::ProtoBufferReader, google::protobuf::Message>(&copy, message)
          .ok()) {
    return absl::OkStatus();
  }
  return InvalidArgument(
      "the request is not a {}: check that its strings are valid UTF-8 and that the client's stubs "
      "are of this server's proto/inference.proto",
      message->GetTypeName());
}

void SerializeMessage(const google::protobuf::Message& message, grpc::ByteBuffer* bytes) {
  grpc::Slice slice(message.ByteSizeLong());
  message.SerializeWithCachedSizesToArray(const_cast<uint8_t*>(slice.begin()));
  *bytes = grpc::ByteBuffer(&slice, 1);
}

}  // namespace penstock::router
