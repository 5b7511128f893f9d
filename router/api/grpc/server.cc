#include "router/api/grpc/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server_builder.h>

namespace penstock::router {

GrpcServer::GrpcServer(RouterService& service, const GrpcOptions& options)
    : inference_(service, options.api_key,
                 options.message_per_token ? Delivery::kPerToken : Delivery::kCoalesced) {}

GrpcServer::~GrpcServer() { Stop(std::chrono::system_clock::now()); }

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(RouterService& service,
                                                              const GrpcOptions& options) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  std::unique_ptr<GrpcServer> server(new GrpcServer(service, options));
  const bool v6 = options.host.find(':') != std::string::npos;
  const std::string address = v6 ? fmt::format("[{}]:{}", options.host, options.port)
                                 : fmt::format("{}:{}", options.host, options.port);
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port);
  // Else a second router would share the port silently.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.SetMaxReceiveMessageSize(options.max_body_bytes);
  builder.RegisterService(&server->inference_);
  server->server_ = builder.BuildAndStart();
  if (server->server_ == nullptr || port == 0) {
    return Unavailable(
        "cannot listen on {} for gRPC: is the port in use, or the host not this machine's? choose "
        "another one with --grpc-port, or 0 to do without gRPC",
        address);
  }
  server->SetServing(false);
  return server;
}

void GrpcServer::SetServing(bool serving) {
  grpc::HealthCheckServiceInterface* health = server_->GetHealthCheckService();
  if (health == nullptr) return;
  health->SetServingStatus(v1::Inference::service_full_name(), serving);
  health->SetServingStatus("", serving);
}

void GrpcServer::Stop(std::chrono::system_clock::time_point deadline) {
  if (server_ == nullptr) return;
  server_->Shutdown(deadline);
  server_->Wait();
  server_ = nullptr;
}

}  // namespace penstock::router
