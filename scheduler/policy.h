// What the next step runs: a pure function of the engine's state. No clock, no memory of its own,
// no effects; engine_loop carries the plan out.
//
// Plans run ahead of results. `length` counts ids that plans in flight will sample, so the state is
// what it will be when they have run, if nobody stops early; an early stop costs discarded ids.
//
// Order: running decodes (by class, then oldest first), then chunks of running prompts, then
// admission from the head of the waiting queue, all under one token budget. All pages of a
// request's known ids are taken at its admission, those it can share from their holders; from then
// on it takes one page at a time, for the id that is about to be written. A decode that finds no
// page preempts the last, the youngest of the lowest class. The first is never preempted and can
// preempt all others, so something always moves.
//
// A tenant that takes more than its share, among several, leaves some memory free for the others:
// so that who asks for less than his share need not wait for the ends of those who flood.
//
// Admission looks ahead: a request comes in only if all that run, and it, are expected to grow to
// their ends within the pages there are (peak_use.h, length_estimate.h). So nearly nobody is
// preempted. Who was preempted waits at the head of his class, and nobody of it passes him (but
// while what he needs is just being computed): those older than he among the running can only
// become fewer, until he is the oldest himself.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "scheduler/length_estimate.h"
#include "scheduler/peak_use.h"

namespace penstock::scheduler {

struct RunningView {
  uint32_t computed = 0;   // ids [0, computed) are in pages once the plans in flight have run
  uint32_t length = 0;     // ids there are then
  uint32_t limit = 0;      // length at which it ends
  uint32_t num_pages = 0;  // held
  uint64_t last_step = 0;  // last plan with a row of it, or that copies from it; 0: none yet
  uint32_t prompt_len = 0;
  uint32_t rank = 0;     // for LengthEstimate
  uint8_t priority = 0;  // class
  // Of its pages, those that others hold as well: its leaving frees the rest. Needs to be right
  // only when there are fewer free pages than running requests.
  uint32_t num_shared = 0;
  uint32_t num_cached = 0;  // of its pages, those that were in the cache when it was admitted

  // Nothing more to plan: its last id is on its way.
  bool AtEnd() const { return length >= limit; }
};

struct WaitingView {
  uint32_t length = 0;
  uint32_t limit = 0;  // these as in RunningView
  uint32_t prompt_len = 0;
  uint32_t rank = 0;
  // Ids [0, cached) need not be computed; below length. Their whole pages it shares, of the last,
  // partly filled one it gets a copy of its own.
  uint32_t cached = 0;
  uint32_t cached_free = 0;  // of the whole pages, those that count as free as long as it waits
  bool over_share = false;   // its tenant has more than its share: it leaves others some headroom
};

struct PolicyState {
  std::span<const RunningView> running;  // by class, then oldest first
  std::span<const WaitingView> waiting;  // the head of the queue, as far as it could be admitted
  uint64_t completed_step = 0;           // every rank has completed it
  uint32_t page_size = 1;
  uint32_t free_pages = 0;         // with those that are evicted when they are needed
  uint32_t quarantined_pages = 0;  // will be free without any doing
  uint32_t free_slots = 0;
  const LengthEstimate* lengths = nullptr;  // kLookAhead needs it
};

// When a waiting request may come in. The engine looks ahead; the others are what it is compared
// with (tools/bench/simulate).
enum class Admission : uint8_t {
  kLookAhead,
  kWatermark,  // as soon as its ids fit beside the watermark, as vLLM
  kReserve,    // only if everybody's `limit` fits at once, as FasterTransformer
};

struct Budget {
  uint32_t max_tokens = 0;       // of a step
  uint32_t watermark_pages = 0;  // admission leaves so many out of account
  uint32_t headroom_pages = 0;   // and so many more for those over their share
  Admission admission = Admission::kLookAhead;
};

struct PlannedRow {
  uint32_t index;  // into running; running.size() + k is admitted[k]
  uint32_t start;
  uint32_t num_tokens;
  bool sample;  // the row reaches the end of the known ids
};

struct StepPlan {
  std::vector<PlannedRow> rows;     // those of admitted requests last, in order
  std::vector<uint32_t> preempted;  // indexes into running; no rows
  std::vector<uint32_t> admitted;   // indexes into waiting, ascending; each has a row
  PeakUse peak;                     // scratch, here so that its memory is reused
};

constexpr uint32_t PagesFor(uint32_t length, uint32_t page_size) {
  return (length + page_size - 1) / page_size;
}

// Overwrites *plan (kept by the caller so that its memory is reused).
void Plan(const PolicyState& state, const Budget& budget, StepPlan* plan);

}  // namespace penstock::scheduler
