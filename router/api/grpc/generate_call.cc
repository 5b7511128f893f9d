#include "router/api/grpc/generate_call.h"

#include <utility>

#include "router/api/fairness_id.h"
#include "router/api/grpc/convert.h"

namespace penstock::router {
namespace {

// When the client gives the call up; nullopt: it said nothing of that.
std::optional<RequestFields::Clock::time_point> DeadlineOf(
    const grpc::CallbackServerContext& context) {
  const auto left = context.deadline() - std::chrono::system_clock::now();
  if (left > std::chrono::hours(24 * 365)) return std::nullopt;
  return RequestFields::Clock::now() + left;
}

}  // namespace

GenerateCall::GenerateCall(RouterService& service, grpc::CallbackServerContext* context,
                           std::string method, Delivery delivery)
    : service_(service),
      context_(context),
      method_(std::move(method)),
      delivery_(delivery),
      deadline_(DeadlineOf(*context)),
      tenant_(MetadataOf(*context, kFairnessIdHeader)) {}

grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerateCall::Start(
    RouterService& service, grpc::CallbackServerContext* context, const std::string& method,
    Delivery delivery, Parser parse) {
  std::shared_ptr<GenerateCall> call(new GenerateCall(service, context, method, delivery));
  call->self_ = call;
  const bool posted =
      service.workers().Post([call, parse = std::move(parse)] { call->Begin(parse); });
  if (!posted) call->End(ResourceExhausted("too many requests wait to be read: try again later"));
  return call.get();
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerateCall::Refuse(
    RouterService& service, grpc::CallbackServerContext* context, const std::string& method,
    const absl::Status& status) {
  std::shared_ptr<GenerateCall> call(
      new GenerateCall(service, context, method, Delivery::kCoalesced));
  call->self_ = call;
  call->End(status);
  return call.get();
}

void GenerateCall::Begin(const Parser& parse) {
  absl::StatusOr<RequestFields> fields = parse();
  if (!fields.ok()) return End(fields.status());
  fields->arrival = arrival_;
  fields->deadline = deadline_;
  fields->tenant = tenant_;
  auto generation = service_.Prepare(*std::move(fields), weak_from_this(), delivery_);
  if (!generation.ok()) return End(generation.status());
  {
    std::lock_guard lock(mutex_);
    if (cancelled_) return;
    generation_ = *generation;
  }
  service_.Submit(*generation);
}

void GenerateCall::OnOutputReady() { WriteNext(/*write_done=*/false); }

void GenerateCall::OnWriteDone(bool ok) {
  if (!ok) OnCancel();
  WriteNext(/*write_done=*/true);
}

void GenerateCall::WriteNext(bool write_done) {
  Output output;
  {
    std::lock_guard lock(mutex_);
    if (write_done) writing_ = false;
    if (writing_ || finished_) return;
    if (cancelled_) {
      finished_ = true;
      output.failure = Cancelled("the client cancelled the call");
    } else {
      if (!generation_->Take(&output)) return;
      finished_ = output.last;
    }
    writing_ = true;
  }
  // This thread alone is here until the write is done. gRPC is called without the lock, since it
  // may run other calls' reactions on this thread.
  if (!output.failure.ok()) return FinishWith(output.failure);
  FillBuffer(output);
  if (output.last) {
    service_.metrics().CountGrpc(method_, "OK");
    StartWriteAndFinish(&buffer_, grpc::WriteOptions(), grpc::Status::OK);
  } else {
    StartWrite(&buffer_);
  }
}

void GenerateCall::FillBuffer(const Output& output) {
  FillResponse(output, generation_->request().return_text, &response_);
  if (!std::exchange(wrote_first_, true)) {
    response_.set_request_id(generation_->request().request_id);
  }
  if (output.last) response_.mutable_usage()->set_prompt_tokens(generation_->prompt_tokens());
  SerializeMessage(response_, &buffer_);
}

void GenerateCall::End(const absl::Status& status) {
  {
    std::lock_guard lock(mutex_);
    if (std::exchange(finished_, true)) return;
  }
  FinishWith(status);
}

void GenerateCall::FinishWith(const absl::Status& status) {
  service_.metrics().CountGrpc(method_, CodeName(status));
  AddRetryAfter(status, context_);
  Finish(GrpcStatus(status));
}

void GenerateCall::OnCancel() {
  std::shared_ptr<Generation> generation;
  {
    std::lock_guard lock(mutex_);
    cancelled_ = true;
    generation = generation_;
  }
  if (generation != nullptr) generation->Cancel();
  WriteNext(/*write_done=*/false);
}

void GenerateCall::OnDone() { self_.reset(); }

}  // namespace penstock::router
