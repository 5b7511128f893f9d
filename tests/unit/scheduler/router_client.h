// A router as a test wants it: speaks the wire over real sockets, holds leases, submits again what
// the scheduler does not know, and checks the order of what it gets. One thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/net/wire.h"

namespace penstock::scheduler {

struct ClientStream {
  wire::Submit submit;           // as it was first sent
  std::vector<int32_t> outputs;  // in order, without gaps or doubles
  std::vector<wire::Logprob> logprobs;
  std::vector<wire::Logprob> prompt_logprobs;
  wire::EndReason end = wire::END_NONE;
  uint32_t cached_tokens = 0;
  uint32_t error_code = 0;
  std::string error;
  uint32_t retry_after_s = 0;
  int num_ends = 0;
  int num_resubmitted = 0;
  int num_repeated_ids = 0;  // that came again
};

class RouterClient {
 public:
  RouterClient(zmq::context_t& context, const std::string& address, std::string router_id);

  // A greedy request of random-looking ids below 1000.
  static wire::Submit MakeSubmit(uint64_t id, int prompt_len, int max_tokens);
  void Submit(const wire::Submit& submit);
  void Submit(const std::vector<wire::Submit>& submits);  // in one message
  void Cancel(std::vector<uint64_t> ids);                 // and forgets them
  void Send(wire::ToScheduler message);
  void SendLease();
  void Goodbye();

  // Receives, and sends leases, until condition() holds; false after timeout_ms. A condition over
  // what has come from the scheduler.
  bool PumpUntil(const std::function<bool()>& condition, int timeout_ms = 30'000);
  bool AllEnded() const;
  bool WaitReady() {
    return PumpUntil([this] { return has_status && status.ready(); });
  }
  // Until a status that was asked for from now on says what holds.
  bool WaitStatus(const std::function<bool(const wire::Status&)>& holds, int timeout_ms = 30'000);

  std::map<uint64_t, ClientStream> streams;
  bool has_status = false;
  wire::Status status;  // the last one
  uint64_t epoch = 0;
  uint64_t num_messages = 0;
  bool drop_deltas = false;    // as if the wire had lost them
  bool answer_unknown = true;  // submit again what the scheduler does not know
  bool check_ids = true;       // false: count ends only, as cheaply as can be (benchmarks)
  size_t num_ended = 0;
  bool send_leases = true;
  int lease_ms = net::kLeaseMs;

 private:
  void Take(const wire::ToRouter& message);
  void TakeDeltas(const wire::Deltas& deltas);
  void Resubmit(ClientStream& stream);

  std::string router_id_;
  net::RequestSender sender_;
  net::DeltaReceiver receiver_;
  uint64_t lease_sequence_ = 0;
  int64_t next_lease_ns_ = 0;
};

}  // namespace penstock::scheduler
