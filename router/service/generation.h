// One request from its submission to its end: turns ids into outputs that an API takes.
//
// The engine's receive thread feeds it (TokenSink); the API is told through its OutputListener and
// takes what there is when it can write, on any thread. What gathers meanwhile is one output, so a
// slow reader costs memory for its own text alone, and nobody's time.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "router/engine/open_request.h"
#include "router/request/validate.h"
#include "router/service/metrics.h"
#include "router/service/output.h"
#include "router/stream/text_stream.h"
#include "router/tokenizer/tokenizer.h"

namespace penstock::router {

// Bytes that may wait for a reader before its request is ended with RESOURCE_EXHAUSTED.
constexpr size_t kMaxWaitingBytes = 16 << 20;

enum class Delivery {
  kCoalesced,  // what waits is merged into one output
  kPerToken,   // an output for each token
  kWhole,      // one output, at the end
};

class Generation final : public TokenSink {
 public:
  // `prompt_ids` in full. The tokenizer and the metrics outlive the generation.
  Generation(GenerationRequest request, std::vector<int32_t> prompt_ids, const Tokenizer& tokenizer,
             Metrics& metrics, std::weak_ptr<OutputListener> listener, Delivery delivery);

  // For the service. Before the request is submitted: what to call once it has ended, however.
  // False if the client has left already: there is nothing to submit, and on_end is never called.
  bool Open(std::function<void()> on_end);
  // After: what tells the engine to cancel it; called at once if the client has left meanwhile.
  void SetCanceller(std::function<void()> cancel);

  // The next output, if there is one. Any thread.
  bool Take(Output* output);
  // The client has left: no further output, the engine is told. Any thread, any number of times.
  void Cancel();

  const GenerationRequest& request() const { return request_; }
  const std::vector<int32_t>& prompt_ids() const { return prompt_ids_; }
  const Tokenizer& tokenizer() const { return tokenizer_; }
  int32_t prompt_tokens() const { return static_cast<int32_t>(prompt_ids_.size()); }

  SinkAction OnTokens(const TokenDelta& delta) override;
  void OnFailure(const absl::Status& status) override;
  void Flush() override;

 private:
  using Clock = std::chrono::steady_clock;

  // Makes the output of ids [begin, begin + count) of the delta. True if it ends the request.
  bool Advance(const TokenDelta& delta, size_t begin, size_t count, Output* output);
  void SetFinish(const TokenDelta& delta, Output* output);
  void CountTokens(Clock::time_point now, size_t count);
  void Queue(Output output);
  // Counts the end and calls on_end_, once. Without mutex_.
  void End(const char* reason);

  const GenerationRequest request_;
  const std::vector<int32_t> prompt_ids_;
  const Tokenizer& tokenizer_;
  Metrics& metrics_;
  const std::weak_ptr<OutputListener> listener_;
  const Delivery delivery_;
  const Clock::time_point arrival_ = Clock::now();

  // Engine's receive thread.
  TextStream text_;
  Clock::time_point first_token_;
  Clock::time_point last_token_;
  int32_t completion_tokens_ = 0;
  int32_t cached_tokens_ = 0;

  std::mutex mutex_;  // of what follows
  std::deque<Output> outputs_;
  size_t waiting_bytes_ = 0;
  bool announced_ = false;  // the listener has been told of what waits
  bool closed_ = false;     // ended, cancelled or failed: no more outputs
  std::function<void()> on_end_;
  std::function<void()> cancel_;
};

}  // namespace penstock::router
