// A request that an engine works on, as the router keeps it until its end.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "common/status.h"
#include "proto/wire.pb.h"

namespace penstock::router {

// New ids of one request.
struct TokenDelta {
  std::span<const int32_t> ids;  // may be empty when `end` is set
  wire::EndReason end = wire::END_NONE;
  // Null unless the engine sent such. Its logprobs are those of `ids` from index `skip` on (ids
  // that came twice are skipped).
  const wire::Extra* extra = nullptr;
  int skip = 0;
};

enum class SinkAction {
  kContinue,
  kStop,  // the request is done (a stop string, a client that left): the engine is told to cancel
};

// Takes a request's ids. The calls for one request come one at a time, on the receive thread of the
// engine that has it (OnFailure also on the thread that stops the pool); they must not block. After
// an end, a failure or kStop no more come.
class TokenSink {
 public:
  virtual ~TokenSink() = default;
  virtual SinkAction OnTokens(const TokenDelta& delta) = 0;
  virtual void OnFailure(const absl::Status& status) = 0;
  // After the last OnTokens or OnFailure of a batch of messages: hand on what has gathered.
  virtual void Flush() = 0;
};

// Owned by its link's table. `submit` changes on the receive thread alone.
struct OpenRequest {
  wire::Submit submit;  // ids: the prompt, then every output id received
  std::shared_ptr<TokenSink> sink;
  std::optional<std::chrono::steady_clock::time_point> deadline;
  // An engine's word that it doesn't know the request counts from this lease on (EngineLink's
  // lock).
  uint64_t first_lease = 0;
  bool dirty = false;  // has had ids since the last Flush
  bool done = false;   // its sink is not to be called again (receive thread)

  uint32_t num_received() const {
    return static_cast<uint32_t>(submit.ids_size() - submit.prompt_len());
  }
};

// The message that submits it now: what the wire says of its deadline is the time that is left.
wire::Submit SubmitNow(const OpenRequest& request, std::chrono::steady_clock::time_point now);

// What to do with ids [first, first + count) for a request that has `num_received`.
enum class DeltaFate {
  kTake,   // skip num_received - first of them, take the rest
  kStale,  // had all of it
  kGap,    // something is missing before it: wait until it is sent again
};
DeltaFate FateOf(uint32_t num_received, uint32_t first, uint32_t count, wire::EndReason end);

}  // namespace penstock::router
