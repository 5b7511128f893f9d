// The router's end of one engine: submits, cancels, leases, and the ids that come back.
//
// Delivery is not relied on (proto/wire.proto): a lease names every open request and how many ids
// of it are here; what the engine doesn't know is submitted again with the ids so far, so that its
// stream goes on exactly; ids that come twice are dropped, a gap is asked for at once.
//
// Threads: one receive thread a link calls the sinks and `move`, without locks held. Submit, Cancel
// and State may be called from any thread.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>
#include <zmq.hpp>

#include "common/net/wire.h"
#include "common/status.h"
#include "proto/wire.pb.h"
#include "router/engine/open_request.h"

namespace penstock::router {

struct LinkOptions {
  std::string router_id;
  int lease_ms = net::kLeaseMs;
  int silent_ms = 3000;     // an engine that says nothing for so long is not usable
  int grace_ms = 10'000;    // one that was usable so lately is expected back: requests wait for it
  int timeout_ms = 60'000;  // open requests of an engine not usable for so long end: UNAVAILABLE
  // Called on the receive thread, no lock held, when `usable` or `reason` has changed. May be
  // empty.
  std::function<void()> on_change;
};

// What an engine last said.
struct EngineState {
  std::string address;
  bool usable = false;     // ready, answering, not draining: takes new requests
  bool returning = false;  // not usable, but was within grace_ms: takes them if no other one does
  std::string reason;      // why it is not usable
  uint64_t epoch = 0;      // 0: never heard of
  uint32_t in_flight = 0;
  uint64_t resubmissions = 0;
  uint64_t gaps = 0;
  wire::Status status;
};

class EngineLink {
 public:
  // Gives a request of an engine that is lost to another one. False if there is none.
  using Mover = std::function<bool(const std::shared_ptr<OpenRequest>&)>;

  // Connects in the background; starts the receive thread. INVALID_ARGUMENT: a bad address.
  static absl::StatusOr<std::unique_ptr<EngineLink>> Connect(zmq::context_t& context,
                                                             const std::string& address,
                                                             LinkOptions options, Mover move);
  ~EngineLink();
  EngineLink(const EngineLink&) = delete;
  EngineLink& operator=(const EngineLink&) = delete;

  // Opens the requests, all or none, whether the engine is usable or not; it gets them as one
  // message. Their submit.id are new to this link. RESOURCE_EXHAUSTED: too much waits for an engine
  // that is not there.
  absl::Status Submit(std::span<const std::shared_ptr<OpenRequest>> requests);
  // The requests' sinks are not called again but for a batch that is being handled. Ids that are
  // unknown here are passed over.
  void Cancel(std::span<const uint64_t> ids);
  EngineState State() const;

  // Ends all requests with `status`, says goodbye to the engine and joins the thread. Idempotent.
  void Stop(const absl::Status& status);

 private:
  using Clock = std::chrono::steady_clock;

  EngineLink(const std::string& address, LinkOptions options, Mover move, net::RequestSender sender,
             net::DeltaReceiver receiver);
  void Run();
  void ReceiveBatch(int wait_ms);
  void Handle(const wire::ToRouter& message);
  void HandleDeltas(const wire::Deltas& deltas);
  // Returns true if the request is done with.
  bool HandleDelta(const wire::Deltas& deltas, int index, const int32_t* ids,
                   const wire::Extra* extra, OpenRequest* request);
  void HandleStatus(const wire::Status& status);
  void Resubmit(const wire::Status& status);
  void Flush();
  void Tick(Clock::time_point now);
  // Empty if it is usable.
  std::string WhyNotUsable(const wire::Status& status, bool heard,
                           std::chrono::milliseconds silent) const;
  void SendLease();
  // Of an engine that can't go on with its requests: ends those whose time is up, moves the others
  // or, after the timeout, ends them too.
  void RescueRequests(Clock::time_point now);
  void FailIf(const std::function<bool(const OpenRequest&)>& which, const absl::Status& status);
  void SetUsable(bool usable, bool returning, std::string reason);

  const std::string address_;
  const LinkOptions options_;
  const Mover move_;
  net::DeltaReceiver receiver_;  // receive thread

  mutable std::mutex mutex_;  // of what follows
  net::RequestSender sender_;
  std::unordered_map<uint64_t, std::shared_ptr<OpenRequest>> table_;
  uint64_t next_lease_sequence_ = 1;
  EngineState state_;
  bool stopped_ = false;

  // Receive thread only.
  std::vector<std::shared_ptr<OpenRequest>> batch_;  // requests of the message at hand
  std::vector<std::shared_ptr<OpenRequest>> dirty_;  // to flush
  std::vector<uint64_t> done_;                       // to take off the table
  std::vector<uint64_t> stopped_here_;               // to cancel at the engine
  bool lease_now_ = true;
  Clock::time_point next_lease_{};
  Clock::time_point last_heard_;
  Clock::time_point usable_until_;  // the last moment at which the engine was usable
  bool was_usable_ = false;
  std::string refused_reason_;  // the engine speaks another wire version

  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace penstock::router
