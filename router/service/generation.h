// A client's request from its submission to its end: each of its choices is a request of its own to
// the engine, with the same prompt; their outputs are taken here, one after the other.
//
// The engine's receive thread feeds it through the sinks; the API is told through its
// OutputListener and takes what there is when it can write, on any thread. What gathers meanwhile
// is one output a choice, so a slow reader costs memory for its own text alone, and nobody's time.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "router/engine/open_request.h"
#include "router/request/validate.h"
#include "router/service/choice.h"
#include "router/service/metrics.h"
#include "router/service/output.h"
#include "router/tokenizer/tokenizer.h"

namespace penstock::router {

// Bytes that may wait for a reader, for each choice, before its request is ended with
// RESOURCE_EXHAUSTED.
constexpr size_t kMaxWaitingBytes = 16 << 20;

enum class Delivery {
  kCoalesced,  // what waits of a choice is merged into one output
  kPerToken,   // an output for each token
  kWhole,      // one output a choice, at the end of all
};

// Ends once: when all choices have, when one fails (the engine is then told to cancel the others)
// or when the client leaves.
class Generation final : public std::enable_shared_from_this<Generation> {
 public:
  // `prompt_ids` in full. The tokenizer and the metrics outlive the generation.
  Generation(GenerationRequest request, std::vector<int32_t> prompt_ids, const Tokenizer& tokenizer,
             Metrics& metrics, std::weak_ptr<OutputListener> listener, Delivery delivery);

  // For the service. Before the request is submitted: what to call once it has ended, however.
  // False if the client has left already: there is nothing to submit, and on_end is never called.
  bool Open(std::function<void()> on_end);
  // Takes the ids of a choice, and keeps the generation.
  std::shared_ptr<TokenSink> Sink(int choice);
  // After the submission: what tells the engine to cancel all of it; called at once if the
  // generation has ended meanwhile. It passes over choices that have ended.
  void SetCanceller(std::function<void()> cancel);
  // Ends it with this as its last output. Any thread; Flush tells the listener.
  void Fail(const absl::Status& status);
  // Tells the listener if something waits that it has not been told of.
  void Flush();

  // The next output, if there is one. Any thread.
  bool Take(Output* output);
  // The client has left: no further output, the engine is told. Any thread, any number of times.
  void Cancel();

  const GenerationRequest& request() const { return request_; }
  const std::vector<int32_t>& prompt_ids() const { return prompt_ids_; }
  const Tokenizer& tokenizer() const { return tokenizer_; }
  int32_t prompt_tokens() const { return static_cast<int32_t>(prompt_ids_.size()); }
  int num_choices() const { return request_.num_choices; }

 private:
  struct ChoiceSink final : public TokenSink {
    ChoiceSink(Generation& generation, int index)
        : generation(generation),
          choice(index, generation.request_, generation.prompt_ids_, generation.tokenizer_,
                 generation.metrics_) {}
    SinkAction OnTokens(const TokenDelta& delta) override {
      return generation.Advance(&choice, delta);
    }
    void OnFailure(const absl::Status& status) override { generation.Fail(status); }
    void Flush() override { generation.Flush(); }

    Generation& generation;
    Choice choice;              // the receive thread's
    Output* waiting = nullptr;  // in outputs_, to be merged into; mutex_
    int32_t num_taken = 0;      // tokens of it that have been taken; mutex_
  };

  SinkAction Advance(Choice* choice, const TokenDelta& delta);
  // Puts it with what waits. False if the generation has ended, now or before.
  bool Queue(Output output);
  // As Fail; without what waits if `drop_waiting`.
  void Close(const absl::Status& status, bool drop_waiting);
  // Counts the choices that have not finished as ended so, and calls on_end_, once. Without mutex_,
  // after closed_ has been set.
  void End(const char* reason);

  const GenerationRequest request_;
  const std::vector<int32_t> prompt_ids_;
  const Tokenizer& tokenizer_;
  Metrics& metrics_;
  const std::weak_ptr<OutputListener> listener_;
  const Delivery delivery_;
  const size_t max_waiting_bytes_;
  std::deque<ChoiceSink> sinks_;  // a choice's, by its index

  std::mutex mutex_;  // of what follows
  std::deque<Output> outputs_;
  size_t waiting_bytes_ = 0;
  int num_finished_ = 0;
  int32_t tokens_taken_ = 0;
  int32_t cached_tokens_ = -1;  // the fewest of any choice that has begun; -1: none has
  bool announced_ = false;      // the listener has been told of what waits
  bool closed_ = false;         // ended, cancelled or failed: no more outputs
  std::function<void()> on_end_;
  std::function<void()> cancel_;
};

}  // namespace penstock::router
