#include "scheduler/engine_loop.h"

#include <sys/random.h>

#include <algorithm>
#include <ctime>
#include <optional>

#include "common/log.h"

namespace penstock::scheduler {
namespace {

constexpr uint64_t kIdleWindowNs = 1'000'000'000;

// Differs from that of every earlier process on any engine of this name, also when the segment was
// made anew.
uint64_t ProcessEpoch() {
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

std::optional<KeySecret> PrefixSecret(const EngineOptions& options) {
  if (!options.enable_prefix_caching) return std::nullopt;
  KeySecret secret;
  CHECK(getrandom(&secret, sizeof(secret), 0) == sizeof(secret));
  return secret;
}

// Null if nothing is to be recorded.
absl::StatusOr<std::unique_ptr<Recorder>> MakeRecorder(const EngineOptions& options,
                                                       const shm::Segment& segment,
                                                       const std::optional<KeySecret>& secret) {
  if (options.record_plans.empty()) return nullptr;
  const shm::Geometry& geometry = segment.geometry();
  record::Header header;
  header.set_version(kRecordVersion);
  header.set_penstock_version(PENSTOCK_VERSION);
  header.set_started_unix_ms(static_cast<int64_t>(ProcessEpoch() / 1'000'000));
  header.set_engine_id(options.engine_id);
  header.set_num_ranks(geometry.num_ranks);
  header.set_num_slots(geometry.num_slots);
  header.set_arena_bytes(geometry.arena_bytes);
  header.set_max_num_batched_tokens(options.max_num_batched_tokens);
  header.set_has_secret(secret.has_value());
  if (secret) {
    header.set_secret_0(secret->k0);
    header.set_secret_1(secret->k1);
  }
  for (const auto& [tenant, weight] : options.tenant_weights) {
    record::TenantWeight& recorded = *header.add_tenant_weights();
    recorded.set_tenant(tenant);
    recorded.set_weight(weight);
  }
  for (uint32_t i = 0; segment.adopted() && i < geometry.num_slots; ++i) {
    header.add_generations(segment.slot(i).generation);
  }
  ASSIGN_OR_RETURN(std::unique_ptr<Recorder> recorder,
                   Recorder::Create(options.record_plans, header));
  spdlog::info("msg=\"recording plans, with all requests' token ids\" file={}", recorder->path());
  return recorder;
}

}  // namespace

absl::StatusOr<std::unique_ptr<EngineLoop>> EngineLoop::Create(const EngineOptions& options,
                                                               Metrics* metrics) {
  if (options.max_num_batched_tokens < options.max_num_seqs) {
    return InvalidArgument(
        "--max-num-batched-tokens {} is less than --max-num-seqs {}: each running request takes a "
        "token a step",
        options.max_num_batched_tokens, options.max_num_seqs);
  }
  if (!(options.target_itl_ms >= 0)) {
    return InvalidArgument("--target-itl-ms {} is negative: give milliseconds, or 0 for none",
                           options.target_itl_ms);
  }
  const shm::Geometry geometry =
      WorkerLink::MakeGeometry(options.num_ranks, options.max_num_seqs,
                               uint64_t{options.arena_mb} << 20, options.max_num_batched_tokens);
  ASSIGN_OR_RETURN(std::shared_ptr<shm::Segment> segment,
                   shm::Segment::CreateOrAdopt(options.engine_id, geometry));
  auto routers = RouterLink::Start(options.listen, &segment->header().scheduler_event);
  if (!routers.ok()) {
    if (!segment->adopted()) RETURN_IF_ERROR(shm::Segment::Remove(options.engine_id));
    return routers.status();
  }
  const std::optional<KeySecret> secret = PrefixSecret(options);
  auto recorder = MakeRecorder(options, *segment, secret);
  if (!recorder.ok()) {
    if (!segment->adopted()) RETURN_IF_ERROR(shm::Segment::Remove(options.engine_id));
    return recorder.status();
  }
  return std::unique_ptr<EngineLoop>(new EngineLoop(
      options, metrics, std::move(segment), std::move(*routers), secret, std::move(*recorder)));
}

EngineLoop::EngineLoop(const EngineOptions& options, Metrics* metrics,
                       std::shared_ptr<shm::Segment> segment, std::unique_ptr<RouterLink> routers,
                       std::optional<KeySecret> prefix_secret, std::unique_ptr<Recorder> recorder)
    : options_(options),
      metrics_(metrics),
      segment_(std::move(segment)),
      router_link_(std::move(routers)),
      workers_(segment_),
      batch_({&segment_->slot(0), segment_->geometry().num_slots}, segment_->arena(), prefix_secret,
             std::move(recorder)),
      routers_(options.engine_id, ProcessEpoch()) {
  batch_.SetTenantWeights(options.tenant_weights);
}

void EngineLoop::Stop() {
  num_stops_.fetch_add(1);
  segment_->header().scheduler_event.Notify();
}

void EngineLoop::Run() {
  shm::Event& event = segment_->header().scheduler_event;
  while (true) {
    const uint32_t seen = event.Current();
    if (num_stops_.load() > 0 && !draining_) {
      draining_ = true;
      drain_deadline_ns_ = shm::MonotonicNs() + options_.drain_timeout_ms * 1'000'000;
      spdlog::info("msg=\"draining\" running={} waiting={}", batch_.num_running(),
                   batch_.num_waiting());
    }
    // Results before deaths: what a rank told before it died holds.
    HandleResults();
    HandleRanks();
    HandleMessages();
    ExpireRouters();
    ExpireRequests();
    PublishPlans();
    NoteReadiness();
    FlushRouters();
    ObserveLoad();
    if (draining_ && Drained()) break;
    batch_.HandOver();
    event.Wait(seen, NextDeadline());
  }
  FailAll(Unavailable("engine {} was shut down", options_.engine_id));
  FlushRouters();
  if (absl::Status removed = shm::Segment::Remove(options_.engine_id); !removed.ok()) {
    spdlog::warn("msg=\"segment left behind\" reason=\"{}\"", Message(removed));
  }
  spdlog::info("msg=\"drained\"");
}

bool EngineLoop::Drained() const {
  const bool nothing_left = batch_.num_running() == 0 && batch_.num_waiting() == 0;
  return nothing_left || num_stops_.load() > 1 || shm::MonotonicNs() >= drain_deadline_ns_;
}

int64_t EngineLoop::NextDeadline() const {
  int64_t deadline = drain_deadline_ns_;
  if (!deadlines_.empty()) deadline = std::min(deadline, deadlines_.begin()->first);
  for (const auto& [id, router] : const_cast<EngineLoop*>(this)->routers_.all()) {
    deadline = std::min(deadline, router->last_heard_ns + options_.lease_timeout_ms * 1'000'000);
  }
  if (completed_step_ + 1 < next_step_ && told_ready_) {
    deadline =
        std::min(deadline, published_ns_[(completed_step_ + 1) % kMaxInFlight] + kStepTimeoutNs);
  }
  return deadline;
}

void EngineLoop::HandleRanks() {
  WorkerLink::Change change;
  while ((change = workers_.Poll()) != WorkerLink::Change::kNone) {
    if (change == WorkerLink::Change::kServing) {
      BeginServing();
    } else {
      LoseRanks();
    }
  }
}

void EngineLoop::LoseRanks() {
  ++num_restarts_;
  if (metrics_) metrics_->worker_restarts->Increment();
  std::vector<Request*> failed;
  batch_.LoseRanks(&failed);
  for (Request* request : failed) {
    Fail(*request, Aborted("the engine's workers died twice while they worked on this request"));
  }
  next_step_ = 1;
  completed_step_ = 0;
}

void EngineLoop::BeginServing() {
  const ModelFacts& model = workers_.model();
  const uint32_t max_tokens =
      std::min(options_.max_num_batched_tokens, model.max_num_batched_tokens);
  batch_.Reset(workers_.epoch(), model, max_tokens);
  step_budget_ = StepBudget(1e-3 * options_.target_itl_ms, max_tokens);
  if (metrics_) metrics_->SetCacheConfig(model.page_size, model.num_pages);
  spdlog::info(
      "msg=\"engine ready\" epoch={} ranks={} pages={} page_size={} max_model_len={} "
      "vocabulary={} tokens_a_step={}",
      workers_.epoch(), options_.num_ranks, model.num_pages, model.page_size, model.max_model_len,
      model.vocab_size, max_tokens);
  for (Request* request : batch_.queue().All()) Validate(*request);
}

void EngineLoop::HandleResults() {
  while (const shm::ResultHeader* step = workers_.NextResult(completed_step_ + 1)) {
    TakeUp(*step);
    ObserveStep(*step);
    completed_step_ = step->step;
    workers_.Consume();
    batch_.CompleteStep(completed_step_);
    if (options_.check_invariants) batch_.CheckInvariants();
  }
}

void EngineLoop::TakeUp(const shm::ResultHeader& step) {
  const auto* at = reinterpret_cast<const std::byte*>(&step);
  const std::byte* end = at + step.bytes;
  at += sizeof(step);
  uint32_t num_taken = 0, num_discarded = 0;
  batch_.BeginResults(step);
  for (uint32_t i = 0; i < step.num_rows; ++i) {
    const auto& row = *reinterpret_cast<const shm::ResultRow*>(at);
    const auto* tops = reinterpret_cast<const shm::ResultTop*>(at + sizeof(row));
    at += sizeof(row);
    if (at > end || at + row.num_top * sizeof(shm::ResultTop) > end ||
        row.slot >= options_.max_num_seqs || row.token_id < 0 ||
        static_cast<uint32_t>(row.token_id) >= workers_.model().vocab_size) {
      workers_.DeclareLost(fmt::format("rank 0 reports nonsense in step {}: slot {}, id {}",
                                       step.step, row.slot, row.token_id));
      return;
    }
    at += row.num_top * sizeof(shm::ResultTop);
    batch_.NoteResult(row);
    Request* request = batch_.Find(row.slot, row.generation);
    if (row.is_prompt == 0) ++(request != nullptr ? num_taken : num_discarded);
    if (request != nullptr) TakeUpId(*request, row, tops);
  }
  if (!metrics_) return;
  if (num_taken > 0) metrics_->generation_tokens->Increment(num_taken);
  if (num_discarded > 0) metrics_->discarded_tokens->Increment(num_discarded);
}

void EngineLoop::TakeUpId(Request& request, const shm::ResultRow& row, const shm::ResultTop* tops) {
  wire::Logprob* logprob = nullptr;
  if (row.is_prompt != 0) {
    if (!request.wants_prompt_logprobs || row.position < 1 ||
        row.position >= static_cast<int32_t>(request.prompt_len)) {
      return;
    }
    std::vector<wire::Logprob>& log = request.logprobs->prompt;
    if (log.size() < static_cast<size_t>(row.position)) log.resize(row.position);
    logprob = &log[row.position - 1];
    logprob->Clear();
  } else {
    if (row.position != static_cast<int32_t>(request.ids.size())) {
      workers_.DeclareLost(fmt::format("rank 0 reports position {} of request {} instead of {}",
                                       row.position, request.request_id, request.ids.size()));
      return;
    }
    request.ids.push_back(row.token_id);
    if (request.sampling.num_top_logprobs() >= 0) {
      logprob = &request.logprobs->outputs.emplace_back();
    }
  }
  if (logprob != nullptr) {
    logprob->set_logprob(row.logprob);
    logprob->set_rank(row.rank);
    for (uint32_t i = 0; i < row.num_top; ++i) {
      logprob->add_top_ids(tops[i].token_id);
      logprob->add_top_logprobs(tops[i].logprob);
    }
  }
  if (row.is_prompt != 0) return;
  const wire::EndReason end = EndAfterLastId(request, workers_.model());
  AddDelta(request, request.num_outputs() - 1, 1, end);
  if (end != wire::END_NONE) End(request, end);
}

void EngineLoop::PublishPlans() {
  const uint64_t depth = options_.overlap ? kMaxInFlight : 1;
  while (workers_.state() == WorkerLink::State::kServing && next_step_ - completed_step_ <= depth) {
    const int64_t begin_ns = shm::MonotonicNs();
    // (To count them goes through all that run: only for a target.)
    const uint32_t num_decodes = options_.target_itl_ms > 0 ? batch_.num_decodes() : 0;
    const uint32_t max_tokens = step_budget_.Tokens(num_decodes);
    batch_.SetMaxTokens(max_tokens);
    batch_.HandOver();
    if (!batch_.Compose(next_step_, &record_)) break;
    workers_.Publish(next_step_, record_);
    const int64_t now_ns = shm::MonotonicNs();
    published_ns_[next_step_ % kMaxInFlight] = now_ns;
    const StepShape shape = StepShape::Of(record_.rows);
    shapes_[next_step_ % kMaxInFlight] = shape;
    ++next_step_;
    idle_checked_ = false;
    for (const shm::PlanSlot& bind : record_.binds) {
      Request* request = batch_.Find(bind.slot, bind.generation);
      if (request->was_admitted) continue;
      request->was_admitted = true;
      ++num_admitted_;
      if (!metrics_) continue;
      metrics_->request_queue_seconds->Observe(1e-9 * (now_ns - request->submitted_ns));
      metrics_->prompt_tokens->Increment(request->prompt_len);
    }
    if (metrics_) {
      metrics_->plan_seconds->Observe(1e-9 * (now_ns - begin_ns));
      const uint32_t num_tokens = shape.num_decodes + shape.num_prompt_tokens;
      if (num_tokens > 0) metrics_->iteration_tokens->Observe(num_tokens);
      metrics_->step_token_budget->Set(max_tokens);
    }
    if (options_.check_invariants) batch_.CheckInvariants();
  }
  drain_rate_.Observe(std::exchange(num_admitted_, 0), batch_.num_waiting(),
                      1e-9 * shm::MonotonicNs());
  if (next_step_ == completed_step_ + 1 && !idle_checked_) {
    batch_.CheckAccounts();
    idle_checked_ = true;
  }
}

void EngineLoop::ObserveStep(const shm::ResultHeader& step) {
  const uint64_t busy_ns = step.end_ns - std::min(step.begin_ns, step.end_ns);
  step_budget_.Observe(shapes_[step.step % kMaxInFlight], 1e-9 * static_cast<double>(busy_ns));
  window_busy_ns_ += busy_ns;
  window_idle_ns_ += step.idle_ns;
  if (window_busy_ns_ + window_idle_ns_ >= kIdleWindowNs) {
    idle_ratio_ = static_cast<double>(window_idle_ns_) / (window_busy_ns_ + window_idle_ns_);
    window_busy_ns_ = window_idle_ns_ = 0;
  }
  if (!metrics_) return;
  metrics_->step_seconds->Observe(1e-9 * busy_ns);
}

void EngineLoop::ObserveLoad() {
  if (!metrics_) return;
  metrics_->num_requests_running->Set(static_cast<double>(batch_.num_running()));
  metrics_->num_requests_waiting->Set(static_cast<double>(batch_.num_waiting()));
  metrics_->kv_cache_usage_perc->Set(batch_.PageUsage());
  metrics_->device_idle_ratio->Set(idle_ratio_);
  const uint64_t preemptions = batch_.num_preemptions();
  if (preemptions != reported_preemptions_) {
    metrics_->num_preemptions->Increment(static_cast<double>(preemptions - reported_preemptions_));
    reported_preemptions_ = preemptions;
  }
  const PrefixStats& prefixes = batch_.prefix_stats();
  if (prefixes.queries != reported_prefixes_.queries) {
    metrics_->prefix_cache_queries->Increment(
        static_cast<double>(prefixes.queries - reported_prefixes_.queries));
    metrics_->prefix_cache_hits->Increment(
        static_cast<double>(prefixes.hits - reported_prefixes_.hits));
    reported_prefixes_ = prefixes;
  }
}

}  // namespace penstock::scheduler
