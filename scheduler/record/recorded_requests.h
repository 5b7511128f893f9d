// The requests of a recording, by serial, and how they are called in messages.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "common/status.h"
#include "proto/record.pb.h"
#include "scheduler/record/plan_words.h"
#include "scheduler/request.h"

namespace penstock::scheduler {

class RecordedRequests {
 public:
  // INVALID_ARGUMENT if it is none that a scheduler takes, or its serial is not the next.
  absl::StatusOr<Request*> Take(const record::Enqueue& enqueue);
  // Null if there is none (any more).
  Request* Find(uint64_t serial) const;
  // INVALID_ARGUMENT if there is none; `what` says who asks.
  absl::StatusOr<Request*> Get(uint64_t serial, const char* what) const;
  void Erase(uint64_t serial) { requests_.erase(serial); }

  uint64_t num_taken() const { return num_taken_; }

 private:
  absl::flat_hash_map<uint64_t, std::unique_ptr<Request>> requests_;
  uint64_t num_taken_ = 0;
};

// Adds an id as the engine does. False: it is not the request's next.
bool TakeUpRecordedId(const RecordedId& row, Request* request);

// "request 12 (chatcmpl-3f)"; "no request" for null.
std::string NameOf(const Request* request);

}  // namespace penstock::scheduler
