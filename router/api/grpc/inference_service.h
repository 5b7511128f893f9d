// penstock.v1.Inference: parses, checks the API key and hands over to GenerateCall or the worker
// pool. Called on gRPC's threads.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <functional>
#include <string>

#include "proto/inference.grpc.pb.h"
#include "router/service/service.h"

namespace penstock::router {

// Methods with strings take bytes (see ParseMessage).
using InferenceMethods =
    v1::Inference::WithRawCallbackMethod_Generate<v1::Inference::WithRawCallbackMethod_Chat<
        v1::Inference::WithCallbackMethod_GetModel<v1::Inference::WithRawCallbackMethod_Tokenize<
            v1::Inference::WithRawCallbackMethod_Detokenize<v1::Inference::Service>>>>>;

class InferenceService final : public InferenceMethods {
 public:
  // An empty key admits everyone.
  InferenceService(RouterService& service, std::string api_key, Delivery delivery)
      : service_(service), api_key_(std::move(api_key)), delivery_(delivery) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Chat(grpc::CallbackServerContext* context,
                                                   const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest* request,
                                     v1::GetModelResponse* response) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;

 private:
  absl::Status Authorize(const grpc::CallbackServerContext& context) const;
  // Runs `work` on the worker pool and ends the call with its status.
  grpc::ServerUnaryReactor* Unary(grpc::CallbackServerContext* context, const char* method,
                                  std::function<absl::Status()> work);

  RouterService& service_;
  const std::string api_key_;
  const Delivery delivery_;
};

}  // namespace penstock::router
