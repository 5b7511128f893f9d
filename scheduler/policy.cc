#include "scheduler/policy.h"

#include <algorithm>

namespace penstock::scheduler {
namespace {

class Planner {
 public:
  Planner(const PolicyState& state, const Budget& budget, StepPlan* plan)
      : state_(state),
        budget_(budget),
        plan_(*plan),
        tokens_(budget.max_tokens),
        free_pages_(state.free_pages),
        pending_pages_(state.quarantined_pages),
        young_(state.running.size()) {
    plan_.rows.clear();
    plan_.preempted.clear();
    plan_.admitted.clear();
    for (const RunningView& view : state_.running) {
      if (view.AtEnd()) pending_pages_ += view.num_pages - view.num_shared;
    }
  }

  void PlanDecodes() {
    for (size_t i = 0; i < young_ && tokens_ > 0; ++i) {
      const RunningView& view = state_.running[i];
      if (view.AtEnd() || view.length - view.computed != 1) continue;
      if (PagesFor(view.computed + 1, state_.page_size) > view.num_pages) {
        if (!FindPage(i)) continue;
        --free_pages_;
      }
      AddRow(i, view.computed, 1, view.length);
    }
  }

  void PlanPrompts() {
    for (size_t i = 0; i < young_ && tokens_ > 0; ++i) {
      const RunningView& view = state_.running[i];
      if (view.AtEnd() || view.length - view.computed <= 1) continue;
      AddRow(i, view.computed, std::min(view.length - view.computed, tokens_), view.length);
    }
  }

  void Admit() {
    // Whoever waits for a page comes before new requests.
    if (num_stalled_ > 0 || !plan_.preempted.empty()) return;
    bool over_shares_pass = true;
    for (size_t i = 0; i < state_.waiting.size(); ++i) {
      const WaitingView& view = state_.waiting[i];
      if (tokens_ == 0 || plan_.admitted.size() == state_.free_slots) return;
      if (view.over_share && !over_shares_pass) continue;
      if (!Fits(view)) {
        if (!view.over_share) return;
        over_shares_pass = false;  // those for whom the headroom is need not wait for it
        continue;
      }
      free_pages_ -= PagesTaken(view);
      NoteAdmitted(view);
      AddRow(state_.running.size() + plan_.admitted.size(), view.cached,
             std::min(view.length - view.cached, tokens_), view.length);
      plan_.admitted.push_back(static_cast<uint32_t>(i));
    }
  }

 private:
  // Pages that are free no more when it has been admitted.
  uint32_t PagesTaken(const WaitingView& view) const {
    return PagesFor(view.length, state_.page_size) - view.cached / state_.page_size +
           view.cached_free;
  }

  // Ids in pages that are not its own.
  uint32_t Shared(const WaitingView& view) const {
    return view.cached - view.cached % state_.page_size;
  }

  // Pages of its own if it grew to its limit.
  uint32_t PagesReserved(const WaitingView& view) const {
    return PagesFor(view.limit, state_.page_size) - view.cached / state_.page_size;
  }

  // Whether a request may be admitted. An empty engine takes whatever its pages can hold now.
  bool Fits(const WaitingView& view) {
    const uint32_t pages = PagesTaken(view);
    if (pages > free_pages_) return false;
    if (state_.running.empty() && plan_.admitted.empty()) return true;
    const uint64_t margin =
        uint64_t{budget_.watermark_pages} + (view.over_share ? budget_.headroom_pages : 0);
    if (budget_.admission == Admission::kWatermark) {
      return pages + margin <= free_pages_;
    }
    // The peak is never less than what is held now: most often that settles it.
    if (pages + margin > free_pages_ + pending_pages_) return false;
    if (!future_known_) ForeseeRunning();
    if (budget_.admission == Admission::kReserve) {
      return reserved_pages_ + PagesReserved(view) + view.cached_free <= all_pages_;
    }
    const uint64_t unusable = margin + view.cached_free;
    const uint64_t usable = all_pages_ - std::min(all_pages_, unusable);
    return plan_.peak.PeakWith(Foresee(view, Shared(view))) <= usable * state_.page_size;
  }

  void NoteAdmitted(const WaitingView& view) {
    if (!future_known_) {
      if (budget_.admission == Admission::kWatermark) return;
      ForeseeRunning();
    }
    reserved_pages_ += PagesReserved(view);
    all_pages_ -= std::min<uint64_t>(all_pages_, view.cached_free);
    if (budget_.admission == Admission::kLookAhead) plan_.peak.Insert(Foresee(view, Shared(view)));
  }

  // Done once a plan, and only if somebody could come in. Pages that a request found in the cache
  // are left out on both sides: others may hold them when it ends.
  void ForeseeRunning() {
    future_known_ = true;
    plan_.peak.Clear();
    all_pages_ = uint64_t{state_.free_pages} + state_.quarantined_pages;
    for (const RunningView& view : state_.running) {
      all_pages_ += view.num_pages - view.num_cached;
      if (view.AtEnd()) continue;  // its pages are as good as free
      reserved_pages_ += PagesFor(view.limit, state_.page_size) - view.num_cached;
      if (budget_.admission == Admission::kLookAhead) {
        plan_.peak.Add(Foresee(view, view.num_cached * state_.page_size));
      }
    }
    plan_.peak.Sort();
  }

  // Pages are counted in tokens, `cached` of which are not its own; on average the last page of a
  // request is filled by half.
  template <typename View>
  PeakUse::Entry Foresee(const View& view, uint32_t cached) const {
    const uint32_t max_tokens = view.limit > view.prompt_len ? view.limit - view.prompt_len : 0;
    const uint32_t generated = view.length - view.prompt_len;
    const uint32_t end = state_.lengths->Expect(generated, max_tokens, view.rank);
    const uint32_t held = view.length - cached + (state_.page_size - 1) / 2;
    return {end > generated ? end - generated : 0, held};
  }

  // A free page for running[i], by preempting from the young end if need be. False: it must sit
  // this step out; the pages it waits for are on their way, or it is itself the youngest.
  bool FindPage(size_t i) {
    if (free_pages_ > 0) return true;
    ++num_stalled_;
    while (free_pages_ == 0 && num_stalled_ > pending_pages_ && young_ > i + 1) {
      const RunningView& victim = state_.running[--young_];
      if (victim.AtEnd()) continue;
      plan_.preempted.push_back(static_cast<uint32_t>(young_));
      // Pages that a plan in flight names become free when it has run.
      (victim.last_step > state_.completed_step ? pending_pages_ : free_pages_) +=
          victim.num_pages - victim.num_shared;
    }
    if (free_pages_ == 0) return false;
    --num_stalled_;
    return true;
  }

  void AddRow(size_t index, uint32_t start, uint32_t num_tokens, uint32_t length) {
    plan_.rows.push_back(
        {static_cast<uint32_t>(index), start, num_tokens, start + num_tokens == length});
    tokens_ -= num_tokens;
  }

  const PolicyState& state_;
  const Budget& budget_;
  StepPlan& plan_;
  uint32_t tokens_;  // left in the budget
  uint32_t free_pages_;
  uint32_t pending_pages_;    // will be free soon
  uint32_t num_stalled_ = 0;  // decodes that wait for a page
  size_t young_;              // running[young_ ..] are preempted, but for those at their end

  bool future_known_ = false;    // of what runs: the two below and plan_.peak hold
  uint64_t all_pages_ = 0;       // that there are
  uint64_t reserved_pages_ = 0;  // up to everybody's limit
};

}  // namespace

void Plan(const PolicyState& state, const Budget& budget, StepPlan* plan) {
  Planner planner(state, budget, plan);
  planner.PlanDecodes();
  planner.PlanPrompts();
  planner.Admit();
}

}  // namespace penstock::scheduler
