#include "worker/executor.h"

#include <algorithm>

#include "common/log.h"
#include "common/status.h"

namespace penstock::worker {
namespace {

constexpr int64_t kHeartbeatNs = 1'000'000'000;
constexpr int64_t kResultRingCheckNs = 20'000'000;
// A plan that follows a step this closely is worth spinning for.
constexpr uint64_t kBusyNs = 1'000'000;

uint64_t NowNs() { return static_cast<uint64_t>(shm::MonotonicNs()); }

}  // namespace

absl::StatusOr<std::unique_ptr<Executor>> Executor::Create(shm::Segment* segment,
                                                           kernels::Backend* backend,
                                                           Decoder* decoder,
                                                           ShmCollective* collective,
                                                           const ExecutorOptions& options) {
  const uint64_t largest = segment->geometry().result_ring_bytes / 4;
  if (MaxResultBytes(options.max_num_batched_tokens) > largest) {
    return InvalidArgument(
        "the results of {} tokens may take {} bytes but the result ring takes records of {}: lower "
        "--max-num-batched-tokens to {}, or have the scheduler make larger rings",
        options.max_num_batched_tokens, MaxResultBytes(options.max_num_batched_tokens), largest,
        (largest - MaxResultBytes(0)) / (MaxResultBytes(1) - MaxResultBytes(0)));
  }
  std::unique_ptr<Executor> executor(new Executor(segment, backend, decoder, collective, options));
  // One more than the ids of a request: the last step may yield an id that nobody will ask for.
  const int64_t stride = options.limits.max_model_len + 1;
  ASSIGN_OR_RETURN(executor->token_buffer_,
                   backend->Allocate(sizeof(int32_t) * stride * options.limits.num_slots));
  executor->tokens_ = {executor->token_buffer_->as<int32_t>(), stride};
  return executor;
}

Executor::Executor(shm::Segment* segment, kernels::Backend* backend, Decoder* decoder,
                   ShmCollective* collective, const ExecutorOptions& options)
    : segment_(segment),
      header_(&segment->header()),
      area_(&segment->rank(options.rank)),
      backend_(backend),
      decoder_(decoder),
      collective_(collective),
      options_(options),
      plans_(segment->plan_ring(), &header_->plan_tail, area_->plan_cursor.load()),
      results_(segment, options.rank),
      slots_(options.limits),
      batch_(options.max_num_batched_tokens,
             std::min(options.limits.num_slots, options.max_num_batched_tokens)) {}

absl::Status Executor::Run(const std::atomic<bool>& stop) {
  stop_ = &stop;
  Heartbeat();
  while (!stop.load(std::memory_order_acquire)) {
    const std::byte* record = plans_.Next();
    if (record == nullptr) {
      WaitForPlan();
      continue;
    }
    RETURN_IF_ERROR(TakeRecord(record));
    // The plan and what it names are no longer needed: results of its step are out.
    area_->plan_cursor.store(plans_.cursor(), std::memory_order_release);
    Heartbeat();
    header_->scheduler_event.Notify();
  }
  return absl::OkStatus();
}

void Executor::WaitForPlan() {
  const uint64_t now = NowNs();
  const bool busy = now - area_->heartbeat_ns.load(std::memory_order_relaxed) < kBusyNs;
  const uint32_t seen = header_->plan_event.Current();
  if (!plans_.Empty() || stop_->load(std::memory_order_acquire)) return;
  header_->plan_event.Wait(seen, static_cast<int64_t>(now) + kHeartbeatNs,
                           busy ? options_.spin_ns : 0);
  if (plans_.Empty()) Heartbeat();
}

void Executor::Heartbeat() { area_->heartbeat_ns.store(NowNs(), std::memory_order_release); }

absl::Status Executor::TakeRecord(const std::byte* record) {
  // A pad may be shorter than a header: kind and size alone are read before that is known.
  const auto& header = *reinterpret_cast<const shm::PlanHeader*>(record);
  if (header.kind == shm::PlanKind::kPad) return absl::OkStatus();
  if (header.bytes < sizeof(shm::PlanHeader) || header.bytes % 8 != 0) {
    return Internal("plan: a record of {} bytes before {} is damaged", header.bytes,
                    plans_.cursor());
  }
  switch (header.kind) {
    case shm::PlanKind::kReset:
      Reset(header.epoch);
      return absl::OkStatus();
    case shm::PlanKind::kStep:
      return Step(header);
    default:
      return Internal("plan: unknown kind {}", static_cast<uint32_t>(header.kind));
  }
}

void Executor::Reset(uint64_t epoch) {
  slots_.Reset();
  epoch_ = epoch;
  last_step_ = 0;
  device_free_ns_ = 0;
  if (collective_ != nullptr) collective_->Reset(epoch);
  area_->acked_epoch.store(epoch, std::memory_order_release);
  spdlog::info("msg=\"epoch begun\" epoch={}", epoch);
}

absl::Status Executor::Step(const shm::PlanHeader& header) {
  // Steps before the first Reset were for the process that was here before.
  if (epoch_ == 0) return absl::OkStatus();
  if (header.epoch != epoch_ || header.step != last_step_ + 1) {
    return Internal("plan: step {} of epoch {} follows step {} of epoch {}", header.step,
                    header.epoch, last_step_, epoch_);
  }
  last_step_ = header.step;
  StepTimes times;
  times.plan_ns = NowNs();
  StepPlan plan;
  RETURN_IF_ERROR(ParseStep(header, &plan));
  RETURN_IF_ERROR(Prepare(plan));
  times.begin_ns = NowNs();
  times.idle_ns = times.begin_ns - (device_free_ns_ != 0 ? device_free_ns_ : times.plan_ns);
  RETURN_IF_ERROR(Launch());
  times.end_ns = NowNs();
  // With no request bound the device is not idle for want of a plan.
  device_free_ns_ = slots_.num_bound() > 0 ? times.end_ns : 0;
  Publish(plan, times);
  return absl::OkStatus();
}

absl::Status Executor::Prepare(const StepPlan& plan) {
  for (const shm::PlanSlot& release : plan.releases) RETURN_IF_ERROR(slots_.Release(release));
  for (const shm::PlanSlot& bind : plan.binds) {
    if (bind.slot >= static_cast<uint32_t>(options_.limits.num_slots)) {
      return Internal("plan: bind of slot {}, of {}", bind.slot, options_.limits.num_slots);
    }
    std::span<const int32_t> known_ids;
    RETURN_IF_ERROR(slots_.Bind(bind, segment_->slot(bind.slot), segment_->arena(), &known_ids));
    RETURN_IF_ERROR(backend_->BindTokens(tokens_, static_cast<int32_t>(bind.slot), known_ids));
  }
  for (const shm::PlanAppend& append : plan.appends) RETURN_IF_ERROR(slots_.Append(append));
  return batch_.Build(plan, &slots_);
}

absl::Status Executor::Launch() {
  if (batch_.rows().num_rows == 0) return absl::OkStatus();
  if (collective_ != nullptr) collective_->BeginPlan(plans_.cursor());
  RETURN_IF_ERROR(decoder_->Forward(batch_.rows(), tokens_));
  RETURN_IF_ERROR(decoder_->Sample(batch_.index(), batch_.sample_rows(), tokens_, batch_.ids(),
                                   batch_.logprobs()));
  return backend_->Synchronize();
}

void Executor::Publish(const StepPlan& plan, const StepTimes& times) {
  while (!results_.TryWrite(plan, &batch_, times)) {
    // A scheduler that is alive reads on; one that came anew does not want this epoch's results.
    if (header_->epoch.load(std::memory_order_acquire) != plan.epoch ||
        stop_->load(std::memory_order_acquire)) {
      return;
    }
    const uint32_t seen = header_->plan_event.Current();
    header_->plan_event.Wait(seen, shm::MonotonicNs() + kResultRingCheckNs);
    Heartbeat();
  }
}

}  // namespace penstock::worker
