// One streaming gRPC call, Generate or Chat.
//
// Threads: gRPC calls On* on its own threads, the engine's receive thread calls OnOutputReady and
// mostly writes right there; one write is in flight at most, and what gathers meanwhile goes out
// with the next. The call owns itself until OnDone.
#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "proto/inference.pb.h"
#include "router/service/service.h"

namespace penstock::router {

class GenerateCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                           public OutputListener,
                           public std::enable_shared_from_this<GenerateCall> {
 public:
  // Makes the request's fields of its message, on a worker thread.
  using Parser = std::function<absl::StatusOr<RequestFields>()>;

  // `method` is for metrics. The reactor lives until gRPC is done with it, and so does the context.
  static grpc::ServerWriteReactor<grpc::ByteBuffer>* Start(RouterService& service,
                                                           grpc::CallbackServerContext* context,
                                                           const std::string& method,
                                                           Delivery delivery, Parser parse);
  // Ends the call at once.
  static grpc::ServerWriteReactor<grpc::ByteBuffer>* Refuse(RouterService& service,
                                                            grpc::CallbackServerContext* context,
                                                            const std::string& method,
                                                            const absl::Status& status);

  void OnOutputReady() override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  GenerateCall(RouterService& service, grpc::CallbackServerContext* context, std::string method,
               Delivery delivery);
  void Begin(const Parser& parse);
  // Starts the next write, or the end, if none is in flight and there is something to say.
  void WriteNext(bool write_done);
  void FillBuffer(const Output& output);
  void End(const absl::Status& status);
  // Ends the call; finished_ has been set.
  void FinishWith(const absl::Status& status);

  RouterService& service_;
  grpc::CallbackServerContext* const context_;  // until the call ends, which Begin may not see
  const std::string method_;
  const Delivery delivery_;
  const RequestFields::Clock::time_point arrival_ = RequestFields::Clock::now();
  const std::optional<RequestFields::Clock::time_point> deadline_;
  const std::string tenant_;
  std::shared_ptr<GenerateCall> self_;  // until OnDone

  std::mutex mutex_;  // of what follows
  std::shared_ptr<Generation> generation_;
  bool writing_ = false;
  bool finished_ = false;  // Finish has been or is being called
  bool cancelled_ = false;
  bool wrote_first_ = false;

  // Of the write in flight.
  v1::GenerateResponse response_;
  grpc::ByteBuffer buffer_;
};

}  // namespace penstock::router
