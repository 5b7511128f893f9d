// penstock.v1.Inference/Generate over gRPC, prompts as token ids.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <unordered_set>
#include <vector>

#include "proto/inference.grpc.pb.h"
#include "tools/penstock/bench/server_options.h"
#include "tools/penstock/bench/transport.h"

namespace penstock::bench {

class GrpcTransport : public Transport {
 public:
  // Asks the server for its model. UNAVAILABLE: nobody listens there.
  static absl::StatusOr<std::unique_ptr<GrpcTransport>> Connect(const ServerOptions& options);
  ~GrpcTransport() override;  // cancels what is open

  const ServerModel& model() const { return model_; }

  absl::Status Start(size_t request, const Prompt& prompt) override;
  absl::Status Poll(Clock::time_point deadline, std::vector<Event>* events) override;

 private:
  struct Call {
    size_t request = 0;
    grpc::ClientContext context;  // before what lives in its memory
    std::unique_ptr<grpc::ClientAsyncReader<v1::GenerateResponse>> reader;
    v1::GenerateResponse response;
    grpc::Status status;
    int total_tokens = -1;
    int prompt_tokens = -1;
    enum { kStarting, kReading, kFinishing } state = kStarting;
  };

  explicit GrpcTransport(ServerOptions options) : options_(std::move(options)) {}
  absl::Status AskModel();
  void Authorise(grpc::ClientContext* context) const;
  // One completion of the queue; deletes the call with its last.
  void Advance(Call* call, bool ok, std::vector<Event>* events);

  const ServerOptions options_;
  std::unique_ptr<v1::Inference::Stub> stub_;
  ServerModel model_;
  grpc::CompletionQueue queue_;
  std::unordered_set<Call*> calls_;  // open, owned
};

}  // namespace penstock::bench
