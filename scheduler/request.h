// A request as the scheduler holds it, on the heap, from Submit to its one terminal message.
// Owned by its Router (router_table.h); touched by the engine thread alone.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/shm/layout.h"
#include "common/status.h"
#include "proto/wire.pb.h"
#include "scheduler/page_key.h"

namespace penstock::scheduler {

struct Router;
struct Tenant;

// The model as the ranks loaded it.
struct ModelFacts {
  uint32_t num_pages = 0;  // KV pages that every rank has
  uint32_t page_size = 0;  // tokens a page
  uint32_t max_model_len = 0;
  uint32_t vocab_size = 0;
  uint32_t max_num_batched_tokens = 0;  // tokens of the largest step
  bool operator==(const ModelFacts&) const = default;
};

enum class RequestState : uint8_t {
  kWaiting,
  kRunning,
  kDraining,  // preempted, but ids of its are still on their way from plans in flight
  kLost,      // nowhere: it is to be removed
};

// Log-probabilities, kept to be sent again when a router lacks them.
struct LogprobLog {
  std::vector<wire::Logprob> outputs;  // of each output id of this life
  std::vector<wire::Logprob> prompt;   // of prompt ids 1, 2, ...
};

struct Request {
  Router* router = nullptr;
  uint64_t id = 0;           // unique for its router
  uint64_t serial = 0;       // of all requests of this process, in order; names it in recordings
  std::string request_id;    // for logs
  std::vector<int32_t> ids;  // the prompt, then every output id so far
  uint32_t prompt_len = 0;
  uint32_t first_output =
      0;                   // index of the first output id of this life: it came with those before
  std::string cache_salt;  // pages are shared among requests of one salt
  std::string tenant;
  uint8_t priority = 0;     // class, below WaitingQueue::kNumClasses
  int64_t deadline_ns = 0;  // of CLOCK_MONOTONIC; 0: none
  wire::Sampling sampling;
  std::unique_ptr<LogprobLog> logprobs;  // null unless asked for
  bool wants_prompt_logprobs = false;    // false once they have been sent
  bool skip_prefix_cache = false;        // takes no pages of others, gives none

  RequestState state = RequestState::kWaiting;
  uint64_t order = 0;              // of arrival
  Tenant* tenant_queue = nullptr;  // waiting_queue.h's, as are the next two
  Request *previous_waiting = nullptr, *next_waiting = nullptr;
  uint64_t message = 0;          // that brought it, or the last whose lease named it
  uint32_t lease_mark = 0;       // output ids there were at the router's last lease
  uint32_t num_preemptions = 0;  // deaths of ranks included
  uint32_t num_deaths = 0;       // deaths of ranks while it ran
  int64_t submitted_ns = 0;
  bool was_admitted = false;

  // While running or draining:
  uint32_t index = 0;  // in the running arrays; running only
  uint32_t slot = 0;
  uint64_t last_step = 0;       // last plan that names its pages
  std::vector<uint32_t> pages;  // held KV pages, in order of position
  uint64_t arena_offset = 0;    // its ids, stop ids and biases for the ranks
  uint64_t arena_bytes = 0;

  // What KvPages knows of it (kv_pages.h).
  uint32_t num_shared = 0;  // of `pages`, the first so many are in the prefix tree
  // Of its full pages, those that others may wait for as it is computing them.
  uint32_t announced_begin = 0, announced_end = 0;
  bool offers_tail = false;        // others may copy the page of its tail
  uint32_t tail_length = 0;        // number of ids for which tail_key was made; 0: it was not
  PageKey tail_key;                // of the ids behind the last full page, but the last id
  uint32_t cached_tokens = 0;      // of the prompt, taken from others at its first admission
  std::vector<PageKey> page_keys;  // of the first full pages, as far as they have been needed

  uint32_t num_outputs() const { return static_cast<uint32_t>(ids.size()) - prompt_len; }
};

// The request that was submitted (which ValidateSubmit must let pass); nothing of it is the
// router's or the engine's yet.
std::unique_ptr<Request> MakeRequest(const wire::Submit& submit);

// Length at which the request ends: its max_tokens, the model's context, or, so that it can always
// be brought to an end alone, what all pages hold. (The last id is never written to a page.)
uint32_t LengthLimit(const Request& request, const ModelFacts& model);

// Bytes of arena that a running request takes.
uint64_t ArenaBytes(const Request& request);

// Checks what no router should have let through. INVALID_ARGUMENT names the limit that is broken.
absl::Status ValidateRequest(const Request& request, const ModelFacts& model,
                             uint64_t total_arena_bytes);
// The part of it that needs no model. Called before a Request is made.
absl::Status ValidateSubmit(const wire::Submit& submit);

// Why the request is at its end with its last id, or END_NONE. Call after each id.
wire::EndReason EndAfterLastId(const Request& request, const ModelFacts& model);

// Writes its ids and parameters to `arena`, ArenaBytes at `offset`, and what ranks read of it to
// the slot; but for the generation.
void WriteSlot(const Request& request, std::byte* arena, uint64_t offset, shm::RequestSlot* slot);

// Packs the sampling parameters; stop ids and biases are written to `arena` at `offset`.
shm::SamplingRecord PackSampling(const wire::Sampling& sampling, std::byte* arena, uint64_t offset);

}  // namespace penstock::scheduler
