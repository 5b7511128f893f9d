#include "tests/unit/scheduler/recorded_trace.h"

#include <algorithm>
#include <utility>

#include "common/log.h"
#include "tests/unit/scheduler/segment_rank.h"

namespace penstock::scheduler {
namespace {

constexpr uint32_t kMaxTokens = 64;
constexpr size_t kDepth = 2;

std::unique_ptr<Recorder> MakeRecorder(const std::string& path, const TraceOptions& options,
                                       const KeySecret& secret) {
  if (path.empty()) return nullptr;
  record::Header header;
  header.set_version(kRecordVersion);
  header.set_penstock_version("test");
  header.set_num_ranks(1);
  header.set_num_slots(options.num_slots);
  header.set_arena_bytes(options.arena_bytes);
  header.set_max_num_batched_tokens(kMaxTokens);
  header.set_has_secret(options.sharing);
  header.set_secret_0(secret.k0);
  header.set_secret_1(secret.k1);
  header.add_tenant_weights()->set_tenant("tenant-1");
  header.mutable_tenant_weights(0)->set_weight(4);
  return Recorder::Create(path, header).value();
}

}  // namespace

RecordedTrace::RecordedTrace(const std::string& path, const TraceOptions& options)
    : random_(options.seed),
      options_(options),
      model_{options.num_pages, options.page_size, 1024, SegmentRank::kVocabulary, 256},
      slots_(options.num_slots),
      arena_(options.arena_bytes),
      batch_(slots_, arena_, options.sharing ? std::optional(KeySecret{3, 4}) : std::nullopt,
             MakeRecorder(path, options, {3, 4})) {
  for (std::vector<int32_t>& ids : beginnings_) {
    for (int i = 0; i < 100; ++i) ids.push_back(RandomId());
  }
  batch_.SetTenantWeights({{"tenant-1", 4}});
  Reset();
}

void RecordedTrace::Reset() {
  batch_.Reset(++epoch_, model_, kMaxTokens);
  next_step_ = 1;
}

void RecordedTrace::Run(int num_steps) {
  for (int i = 0; i < num_steps; ++i) Step();
}

void RecordedTrace::Step() {
  const uint32_t dice = random_() % 1000;
  if (live_.size() < 60 && dice < 300) Arrive();
  if (dice >= 300 && dice < 330) CancelOne();
  if (dice >= 997) Die();
  batch_.HandOver();
  if (in_flight_.size() < kDepth) Publish();
  while (!in_flight_.empty() && (in_flight_.size() == kDepth || random_() % 3 == 0)) Complete();
  batch_.CheckInvariants();
}

void RecordedTrace::Finish() {
  while (!live_.empty() || !batch_.AllFree()) {
    while (in_flight_.size() < kDepth && Publish()) {
    }
    CHECK(!in_flight_.empty());
    Complete();
  }
}

void RecordedTrace::Arrive() {
  wire::Submit submit;
  submit.set_id(++num_arrived);
  submit.set_request_id(fmt::format("trace-{}", num_arrived));
  uint32_t prompt_len = 1 + random_() % 100;
  std::vector<int32_t> ids;
  if (random_() % 4 > 0) ids = beginnings_[random_() % beginnings_.size()];
  ids.resize(std::min<size_t>(random_() % (2 * prompt_len), ids.size()));
  while (ids.size() < prompt_len) ids.push_back(RandomId());
  ids.resize(prompt_len);
  if (random_() % 4 == 0 && !last_prompt_.empty()) ids = last_prompt_;
  last_prompt_ = ids;
  prompt_len = static_cast<uint32_t>(ids.size());
  submit.mutable_ids()->Assign(ids.begin(), ids.end());
  submit.set_prompt_len(static_cast<int32_t>(prompt_len));
  submit.set_skip_prefix_cache(random_() % 16 == 0);
  submit.set_priority(static_cast<int32_t>(random_() % 3));
  submit.set_tenant(fmt::format("tenant-{}", random_() % 4));
  if (random_() % 3 == 0) submit.set_cache_salt("other");
  wire::Sampling& sampling = *submit.mutable_sampling();
  sampling.set_seed(num_arrived);
  sampling.set_max_tokens(static_cast<int32_t>(1 + random_() % 200));
  sampling.set_num_top_logprobs(-1);
  const bool wants = options_.log_probabilities && random_() % 8 == 0;
  sampling.set_num_prompt_logprobs(wants ? 0 : -1);
  sampling.add_stop_ids(7);
  std::unique_ptr<Request>& request = live_[num_arrived];
  request = MakeRequest(submit);
  batch_.Enqueue(request.get(), submit);
}

void RecordedTrace::CancelOne() {
  if (live_.empty()) return;
  auto victim = live_.lower_bound(random_() % (num_arrived + 1));
  if (victim == live_.end()) victim = live_.begin();
  batch_.Remove(victim->second.get());
  live_.erase(victim);
}

void RecordedTrace::Die() {
  std::vector<Request*> failed;
  batch_.LoseRanks(&failed);
  for (Request* request : failed) {
    batch_.Remove(request);
    live_.erase(request->id);
    ++num_failed;
  }
  in_flight_.clear();
  Reset();
  ++num_deaths;
}

bool RecordedTrace::Publish() {
  PlanRecord plan;
  batch_.SetMaxTokens(kMaxTokens / (1 + random_() % 3));
  if (!batch_.Compose(next_step_, &plan)) return false;
  in_flight_.push_back({next_step_++, {}});
  ++num_published;
  num_copies += plan.copies.size();
  for (const shm::PlanRow& row : plan.rows) {
    if ((row.flags & shm::kRowSample) == 0) continue;
    const uint32_t position = row.start + row.num_tokens;
    const shm::RequestSlot& slot = slots_[row.slot];
    in_flight_.back().rows.push_back({.slot = row.slot,
                                      .generation = slot.generation,
                                      .token_id = SegmentRank::IdAt(slot.sampling.seed, position),
                                      .position = static_cast<int32_t>(position)});
  }
  return true;
}

void RecordedTrace::Complete() {
  const InFlight done = std::move(in_flight_.front());
  in_flight_.pop_front();
  batch_.BeginResults({.step = done.step});
  for (const shm::ResultRow& row : done.rows) {
    batch_.NoteResult(row);
    Request* request = batch_.Find(row.slot, row.generation);
    if (request == nullptr) continue;
    CHECK(row.position == static_cast<int32_t>(request->ids.size()));
    request->ids.push_back(row.token_id);
    request->wants_prompt_logprobs = false;
    if (EndAfterLastId(*request, model_) == wire::END_NONE) continue;
    batch_.LearnLength(*request);
    beginnings_[random_() % beginnings_.size()] = request->ids;
    batch_.Remove(request);
    live_.erase(request->id);
  }
  batch_.CompleteStep(done.step);
}

}  // namespace penstock::scheduler
