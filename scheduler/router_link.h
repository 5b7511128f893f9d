// The scheduler's end of the wire to the routers. In: a thread of its own receives, queues and
// wakes the engine thread. Out: the engine thread sends by itself, one hop less.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>
#include <zmq.hpp>

#include "common/net/wire.h"
#include "common/shm/event.h"
#include "common/status.h"

namespace penstock::scheduler {

class RouterLink {
 public:
  // Binds both sockets of `address` and starts to receive. `wake` is notified whenever messages
  // were queued, and must outlive the link. UNAVAILABLE: the address is in use.
  static absl::StatusOr<std::unique_ptr<RouterLink>> Start(const std::string& address,
                                                           shm::Event* wake);
  // Ends the receiving thread. Messages that were sent go out for up to a second.
  ~RouterLink();

  // Moves what came since the last call to *messages (overwritten), in order of arrival.
  void Take(std::vector<wire::ToScheduler>* messages);
  // Engine thread only.
  absl::Status Send(const std::string& router_id, wire::ToRouter* message) {
    return deltas_.Send(router_id, message);
  }

 private:
  RouterLink(std::unique_ptr<zmq::context_t> context, net::RequestReceiver requests,
             net::DeltaSender deltas, shm::Event* wake);
  void Receive();

  std::unique_ptr<zmq::context_t> context_;
  net::RequestReceiver requests_;  // the receiving thread's
  net::DeltaSender deltas_;        // the engine thread's
  shm::Event* wake_;
  std::mutex mutex_;
  std::vector<wire::ToScheduler> inbox_;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace penstock::scheduler
