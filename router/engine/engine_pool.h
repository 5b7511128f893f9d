// All engines of this router: chooses one for each request, moves requests off a lost one.
//
// Thread-safe. Sinks are called on the engines' receive threads.
#pragma once

#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <vector>
#include <zmq.hpp>

#include "common/status.h"
#include "router/engine/engine_link.h"

namespace penstock::router {

class EnginePool {
 public:
  // Connects to all in the background. INVALID_ARGUMENT: no address, or a bad one.
  static absl::StatusOr<std::unique_ptr<EnginePool>> Connect(
      const std::vector<std::string>& addresses, const LinkOptions& options);
  ~EnginePool();

  // Gives the requests ids and opens all, or none, at the least loaded engine; if none is usable,
  // at one that is expected back. UNAVAILABLE: there is none of these either; the message says why.
  // Returns the ids.
  absl::StatusOr<std::vector<uint64_t>> Submit(
      std::span<const std::shared_ptr<OpenRequest>> requests);
  // Ends the requests without a further word to their sinks. Unknown ids are passed over.
  void Cancel(std::span<const uint64_t> ids);

  std::vector<EngineState> States() const;
  // OK if an engine is usable, else UNAVAILABLE with the reason.
  absl::Status Ready() const;
  // OK if a request would be taken: an engine is usable, or expected back soon.
  absl::Status Accepts() const;
  // The smallest context any engine has loaded its model with; 0 until known.
  uint32_t max_model_len() const;

  // Ends all requests with `status` and says goodbye. Idempotent.
  void Stop(const absl::Status& status);

 private:
  EnginePool() = default;
  // The usable engine with the fewest requests, other than `except`; null if there is none. With
  // or_returning, an engine that is expected back will do if no other is there.
  EngineLink* Choose(const EngineLink* except, bool or_returning, std::string* reason) const;

  zmq::context_t context_{1};
  std::atomic<bool> connected_{false};  // links_ is complete
  std::vector<std::unique_ptr<EngineLink>> links_;
  std::atomic<uint64_t> next_id_{1};
};

// Of the operating system's entropy.
uint64_t RandomU64();

}  // namespace penstock::router
