// Between penstock.v1 messages and the router's own terms. Pure.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/status.h>

#include <string>

#include "common/status.h"
#include "proto/inference.pb.h"
#include "router/request/fields.h"
#include "router/service/output.h"

namespace penstock::router {

RequestFields FieldsOf(const v1::GenerateRequest& request);
RequestFields FieldsOf(const v1::ChatRequest& request);

// Clears *response and fills it with the output, but for usage.prompt_tokens and request_id.
void FillResponse(const Output& output, bool text, v1::GenerateResponse* response);

// The client's metadata of that name, the first if there are several; empty if there is none.
std::string MetadataOf(const grpc::CallbackServerContext& context, const char* name);

// Trailing metadata `retry-after`, in seconds, where trying again may help. Before the call ends.
void AddRetryAfter(const absl::Status& status, grpc::CallbackServerContext* context);

// With a google.rpc.RetryInfo where trying again may help.
grpc::Status GrpcStatus(const absl::Status& status);
// The code's name as gRPC writes it, "INVALID_ARGUMENT".
const char* CodeName(const absl::Status& status);

// Requests are taken as bytes, since gRPC answers ones that don't parse (bad UTF-8 is among them)
// with UNIMPLEMENTED and no message. INVALID_ARGUMENT with what to look for.
absl::Status ParseMessage(const grpc::ByteBuffer& bytes, google::protobuf::Message* message);
void SerializeMessage(const google::protobuf::Message& message, grpc::ByteBuffer* bytes);

}  // namespace penstock::router
