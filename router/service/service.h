// What both APIs do with a request: check it, turn its prompt into ids, give it to an engine. Also
// the model's facts and whether this router takes requests.
//
// Thread-safe. Prepare, Tokenize and Detokenize may take long: call them on the worker pool.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "router/chat/chat_template.h"
#include "router/engine/engine_pool.h"
#include "router/request/validate.h"
#include "router/service/generation.h"
#include "router/service/metrics.h"
#include "router/service/worker_pool.h"
#include "router/tokenizer/tokenizer.h"

namespace penstock::router {

// What is served (load_model.h).
struct ServedModel {
  std::string path;
  std::vector<std::string> names;               // at least one
  int32_t context_length = 0;                   // as the file says; the engine's word goes first
  int32_t vocab_size = 0;                       // ids that the model takes: 0 to this
  std::unique_ptr<Tokenizer> tokenizer;         // never null, but perhaps without text
  std::unique_ptr<ChatTemplate> chat_template;  // null: see why_no_chat
  std::string why_no_chat = "the model has no chat template";
  SamplingDefaults defaults = {};  // what requests leave out
  int64_t created = 0;             // Unix time at which it was loaded
};

class RouterService {
 public:
  // All outlive the service.
  RouterService(const ServedModel& model, EnginePool& engines, Metrics& metrics,
                WorkerPool& workers);

  const ServedModel& model() const { return model_; }
  Metrics& metrics() { return metrics_; }
  WorkerPool& workers() { return workers_; }
  EnginePool& engines() { return engines_; }
  ModelLimits limits() const;

  // Checks the request and makes its prompt ids. The generation is not started: first its API has
  // to be ready for outputs. INVALID_ARGUMENT, NOT_FOUND; UNAVAILABLE if this router drains or no
  // engine is ready.
  absl::StatusOr<std::shared_ptr<Generation>> Prepare(RequestFields fields,
                                                      std::weak_ptr<OutputListener> listener,
                                                      Delivery delivery);
  // Starts it. What goes wrong from here on reaches the listener as the generation's failure.
  void Submit(const std::shared_ptr<Generation>& generation);

  // Ids of a text prompt or a conversation, as a request would have them.
  absl::StatusOr<std::vector<int32_t>> Tokenize(const std::string& text,
                                                std::optional<bool> add_special_tokens) const;
  absl::StatusOr<std::vector<int32_t>> TokenizeChat(const ChatPrompt& messages,
                                                    bool add_generation_prompt) const;
  absl::StatusOr<std::string> Detokenize(const std::vector<int64_t>& ids) const;

  // OK if requests are taken now, else UNAVAILABLE with the reason.
  absl::Status Ready() const;
  // From now on new requests are refused.
  void StartDraining();
  bool draining() const { return draining_; }
  // Waits until no request is open. False at the deadline.
  bool WaitUntilIdle(std::chrono::steady_clock::time_point deadline);

 private:
  // Checks that the model's tokeniser can do what is asked, and fits the request to one that can't
  // do anything.
  absl::Status CheckText(GenerationRequest* request) const;
  absl::Status NeedsText(const std::string& field) const;
  // The ids, if the model takes them all: a tokeniser may have tokens that were added to it alone.
  absl::StatusOr<std::vector<int32_t>> Known(std::vector<int32_t> ids, const char* field) const;
  absl::StatusOr<std::vector<int32_t>> PromptIds(const GenerationRequest& request) const;

  const ServedModel& model_;
  EnginePool& engines_;
  Metrics& metrics_;
  WorkerPool& workers_;
  std::atomic<bool> draining_{false};
  std::mutex mutex_;
  std::condition_variable idle_;
  int num_open_ = 0;  // mutex_
};

// "cmpl-<32 hex digits>" and the like.
std::string MakeRequestId(const std::string& prefix);

}  // namespace penstock::router
