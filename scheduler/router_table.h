// The routers an engine serves, the requests of each, and the messages that are being made up for
// them: one Deltas a router and step. Engine thread only.
//
// A request is forgotten the moment it ends. Its end cannot get lost for good all the same: deltas
// and statuses go to a router through one ordered socket, so a Status that calls the request
// unknown comes after its last delta. A router that has that delta pays the Status no heed; one
// that has not (the connection broke) submits the request again with the ids it has, and as
// sampling depends on seed and position alone it ends as it did before.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/status.h"
#include "proto/wire.pb.h"
#include "scheduler/request.h"

namespace penstock::scheduler {

struct Router {
  std::string id;
  int64_t last_heard_ns = 0;
  bool lost_sends = false;  // it could not be reached since its last lease
  absl::flat_hash_map<uint64_t, std::unique_ptr<Request>> requests;

  // Deltas being made up; taken apart from the message so that their memory is reused.
  wire::ToRouter message;
  std::vector<wire::EndReason> ends;  // parallel to the columns
  bool any_end = false;

  bool status_due = false;
  uint64_t lease_sequence = 0;        // that the status answers; 0: none
  std::vector<uint64_t> unknown_ids;  // for it
};

// Adds ids [first, first + count) of the request's outputs to the router's deltas, with their
// log-probabilities if it wants any.
void AddDelta(Request& request, uint32_t first, uint32_t count, wire::EndReason end);
// Adds an end with an error; for requests that never came to be as well.
void AddError(Router& router, uint64_t id, uint32_t num_outputs, const absl::Status& error,
              uint32_t retry_after_s = 0);

class RouterTable {
 public:
  // `engine_id` and `process_epoch` stand in every message.
  RouterTable(std::string engine_id, uint64_t process_epoch);

  // The router of that name; made if it is new.
  Router& Get(const std::string& id, int64_t now_ns);
  void Erase(const std::string& id) { routers_.erase(id); }
  auto& all() { return routers_; }

  // Calls send(router id, ToRouter*) -> absl::Status for every router with deltas or a status due;
  // `status` is what a Status says but for what it answers. Deltas go before the Status.
  template <typename Send>
  void Flush(const wire::Status& status, Send send) {
    for (auto& [id, router] : routers_) {
      if (FinishDeltas(*router) && !send(id, &router->message).ok()) router->lost_sends = true;
      ResetDeltas(*router);
      if (!router->status_due) continue;
      wire::ToRouter message = MakeStatus(*router, status);
      (void)send(id, &message);  // the next lease asks again
      router->status_due = false;
    }
  }
  // Whether Flush needs an up-to-date status.
  bool AnyStatusDue() const;

 private:
  static bool FinishDeltas(Router& router);
  static void ResetDeltas(Router& router);
  wire::ToRouter MakeStatus(Router& router, const wire::Status& status) const;

  std::string engine_id_;
  uint64_t process_epoch_;
  absl::flat_hash_map<std::string, std::unique_ptr<Router>> routers_;
};

}  // namespace penstock::scheduler
