// What lies in an engine's shared-memory segment. One segment an engine and node:
//
//   SegmentHeader | RequestSlot[num_slots] | RankArea[num_ranks] | plan ring | result rings | arena
//   | collective buffers
//
// Every field has one writer, named beside it; there are no cross-process locks. Readers see a
// record only after the release store of the ring's tail that publishes it. Offsets are bytes from
// the segment's start, never pointers. Any change of a layout raises kLayoutVersion: processes of
// different versions refuse each other.
#pragma once

#include <atomic>
#include <cstdint>
#include <type_traits>

#include "common/shm/event.h"

namespace penstock::shm {

constexpr uint64_t kMagic = 0x4b434f54534e4550;  // "PENSTOCK"
constexpr uint32_t kLayoutVersion = 2;
constexpr int kMaxRanks = 64;
constexpr int kMaxEngineIdBytes = 64;
constexpr int kMaxTopLogprobs = 20;

// What the scheduler fixes when it makes the segment. All ranks find it in the header.
struct Geometry {
  uint32_t num_ranks = 1;
  uint32_t num_slots = 256;              // requests running at once, --max-num-seqs
  uint64_t plan_ring_bytes = 4 << 20;    // power of two
  uint64_t result_ring_bytes = 4 << 20;  // of each rank; power of two
  uint64_t arena_bytes = 64 << 20;       // token ids, stop ids and biases of running requests
  uint64_t collective_bytes = 0;         // of each rank: two halves, used in turn; 0 with one rank
  bool operator==(const Geometry&) const = default;
};

struct alignas(64) SegmentHeader {
  uint64_t magic;
  uint32_t layout_version;
  uint32_t header_bytes, slot_bytes, rank_bytes;  // sizeof, checked on attaching
  uint64_t total_bytes;
  Geometry geometry;
  uint64_t slots_offset, ranks_offset, plan_ring_offset, result_rings_offset, arena_offset,
      collective_offset;
  char engine_id[kMaxEngineIdBytes];

  alignas(64) std::atomic<uint64_t> epoch;  // scheduler: raised when it starts and when a rank died
  alignas(64) std::atomic<uint64_t> plan_tail;  // scheduler: bytes ever written to the plan ring
  Event plan_event;                             // scheduler notifies, ranks wait
  alignas(64) Event
      scheduler_event;  // ranks (and the scheduler's own I/O) notify, the scheduler waits
};

// The packed form of a request's sampling parameters. Meaning: kernels/sampling_params.h.
struct SamplingRecord {
  float temperature, top_p, min_p;
  float repetition_penalty, presence_penalty, frequency_penalty;
  int32_t top_k;
  int32_t min_tokens;
  uint64_t seed;
  int32_t
      num_top_logprobs;  // -1: none; else each sampled id comes with its own and the best so many
  int32_t num_prompt_logprobs;  // likewise for the prompt's ids
  uint64_t stop_ids_offset,
      logit_bias_offset;  // in the arena: int32_t[], {int32_t id; float bias}[]
  uint32_t num_stop_ids, num_logit_bias;
};

// A request that has been admitted. Writer: the scheduler, before the plan record that binds the
// slot is published; unchanged until every rank has completed the plan that releases it.
struct alignas(64) RequestSlot {
  uint32_t generation;  // raised at each binding; results carry it
  uint32_t prompt_len;  // ids [0, prompt_len) are the prompt
  uint32_t known_len;   // ids [0, known_len) stand in the arena: prompt, and outputs of before a
                        // preemption
  uint32_t reserved;
  uint64_t ids_offset;  // in the arena: int32_t[known_len]
  SamplingRecord sampling;
};

enum class RankState : uint32_t { kAbsent = 0, kLoading = 1, kReady = 2, kFailed = 3 };

// What a rank tells of itself. Writer: that rank.
struct alignas(64) RankArea {
  std::atomic<uint64_t> incarnation;  // differs at each start of the process; never 0
  std::atomic<uint32_t> state;        // RankState
  std::atomic<uint32_t> pid;
  std::atomic<uint64_t> acked_epoch;   // of the last Reset it has carried out
  std::atomic<uint64_t> plan_cursor;   // bytes of the plan ring it no longer needs
  std::atomic<uint64_t> result_tail;   // bytes ever written to its result ring
  std::atomic<uint64_t> heartbeat_ns;  // CLOCK_MONOTONIC when it last did something
  // The model as loaded; valid from kReady.
  std::atomic<uint32_t> num_pages, page_size, max_model_len, vocab_size, max_num_batched_tokens;
  std::atomic<float> load_progress;  // 0..1, weights loaded
  char error[512];                   // why it failed, NUL-terminated; valid from kFailed
  // Shared-memory collectives between ranks (CPU): the call this rank has put its part out for, as
  // (epoch << 40) + count, and what peers wait on.
  alignas(64) std::atomic<uint64_t> collective_sequence;
  Event collective_event;
  // Scheduler: bytes of this rank's result ring it no longer needs.
  alignas(64) std::atomic<uint64_t> result_cursor;
};

// ---- Plan ring. One record a step; a rank's actions depend on this stream alone. ----

enum class PlanKind : uint32_t { kPad = 0, kReset = 1, kStep = 2 };

// Followed by release[num_releases], bind[num_binds], append[num_appends], copy[num_copies],
// row[num_rows], carried out in that order.
struct PlanHeader {
  uint32_t bytes;  // of the whole record, a multiple of 8
  PlanKind kind;
  uint64_t epoch;
  uint64_t step;  // of kStep: 1, 2, 3 ... within an epoch
  uint32_t num_releases, num_binds, num_appends, num_copies, num_rows;
  uint32_t reserved;
};

struct PlanSlot {  // release: the slot's pages and ids are no more. bind: read the RequestSlot; no
                   // pages, length 0.
  uint32_t slot;
  uint32_t generation;
};

struct PlanAppend {  // the slot's page table grows by one
  uint32_t slot;
  uint32_t page;
};

struct PlanCopy {  // page `to` becomes what page `from` is, in all layers
  uint32_t from;
  uint32_t to;
};

enum PlanRowFlags : uint32_t {
  kRowSample = 1,  // the last token of the row yields an id
  kRowPromptLogprobs =
      2,  // report log-probabilities of the ids that follow each of the row's tokens in the prompt
};

struct PlanRow {  // compute ids [start, start + num_tokens) of the slot; ids below start are in the
                  // pages
  uint32_t slot;
  uint32_t start;
  uint32_t num_tokens;
  uint32_t flags;
};

// ---- Result rings. One record a step and rank; rank 0's has the rows, the others' only the hash.
// ----

// Followed by num_rows ResultRows, each followed by its num_top ResultTops. Rows with is_prompt
// come before the sampled row of their request.
struct ResultHeader {
  uint32_t bytes;  // of the whole record, a multiple of 8; kPadResult marks a pad
  uint32_t num_rows;
  uint64_t epoch;
  uint64_t step;
  uint64_t ids_hash;  // over the sampled ids: must agree on all ranks
  uint64_t plan_ns;   // CLOCK_MONOTONIC: when the rank took the plan up
  uint64_t begin_ns;  // when the device began the step
  uint64_t end_ns;    // when it ended
  uint64_t
      idle_ns;  // how long the device had idled before it though a plan was there or being awaited
};
constexpr uint32_t kPadResult = 0xffffffff;  // in num_rows

struct ResultRow {
  uint32_t slot;
  uint32_t generation;
  int32_t token_id;
  int32_t position;  // of token_id in the request
  float logprob;
  int32_t rank;  // 1 = the most likely; 0: no log-probability was asked for
  uint32_t num_top;
  uint32_t is_prompt;  // 1: token_id is the prompt's own id at this position
};

struct ResultTop {
  int32_t token_id;
  float logprob;
};

static_assert(std::atomic<uint64_t>::is_always_lock_free &&
              std::atomic<uint32_t>::is_always_lock_free &&
              std::atomic<float>::is_always_lock_free);
static_assert(sizeof(PlanRow) == 16 && sizeof(PlanAppend) == 8 && sizeof(PlanCopy) == 8 &&
              sizeof(PlanSlot) == 8);
static_assert(sizeof(PlanHeader) == 48 && sizeof(ResultHeader) == 64 && sizeof(ResultRow) == 32);
static_assert(std::is_trivially_copyable_v<RequestSlot> &&
              std::is_trivially_copyable_v<PlanHeader> &&
              std::is_trivially_copyable_v<ResultHeader> && std::is_trivially_copyable_v<Geometry>);
static_assert(std::is_standard_layout_v<SegmentHeader> && std::is_standard_layout_v<RankArea>);

}  // namespace penstock::shm
