#include "scheduler/record/recorded_requests.h"

namespace penstock::scheduler {

absl::StatusOr<Request*> RecordedRequests::Take(const record::Enqueue& enqueue) {
  if (enqueue.serial() != num_taken_ + 1) {
    return InvalidArgument("request {} follows request {}", enqueue.serial(), num_taken_);
  }
  if (absl::Status status = ValidateSubmit(enqueue.submit()); !status.ok()) {
    return InvalidArgument("request {} cannot have been taken: {}", enqueue.serial(),
                           Message(status));
  }
  num_taken_ = enqueue.serial();
  std::unique_ptr<Request>& request = requests_[num_taken_];
  request = MakeRequest(enqueue.submit());
  request->serial = num_taken_;
  return request.get();
}

Request* RecordedRequests::Find(uint64_t serial) const {
  const auto found = requests_.find(serial);
  return found == requests_.end() ? nullptr : found->second.get();
}

absl::StatusOr<Request*> RecordedRequests::Get(uint64_t serial, const char* what) const {
  if (Request* request = Find(serial)) return request;
  return InvalidArgument("{} request {}, which is not there", what, serial);
}

bool TakeUpRecordedId(const RecordedId& row, Request* request) {
  if (row.position != request->ids.size()) return false;
  request->ids.push_back(static_cast<int32_t>(row.id));
  request->wants_prompt_logprobs = false;  // they went out with the first id (router_table.cc)
  return true;
}

std::string NameOf(const Request* request) {
  if (request == nullptr) return "no request";
  return fmt::format("request {} ({})", request->serial, request->request_id);
}

}  // namespace penstock::scheduler
