// The gRPC server: penstock.v1.Inference, grpc.health.v1 and reflection.
#pragma once

#include <grpcpp/server.h>

#include <chrono>
#include <memory>
#include <string>

#include "router/api/grpc/inference_service.h"

namespace penstock::router {

struct GrpcOptions {
  std::string host;
  int port = 0;
  std::string api_key;
  int max_body_bytes = 8 << 20;
  bool message_per_token = false;
};

// gRPC runs its own threads. Health is set from any thread; "" and "penstock.v1.Inference" alike.
class GrpcServer {
 public:
  // UNAVAILABLE if the port is in use.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(RouterService& service,
                                                           const GrpcOptions& options);
  ~GrpcServer();

  void SetServing(bool serving);
  // Lets calls end until the deadline, then cancels them. Returns when all are done. Idempotent.
  void Stop(std::chrono::system_clock::time_point deadline);

 private:
  GrpcServer(RouterService& service, const GrpcOptions& options);

  InferenceService inference_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace penstock::router
