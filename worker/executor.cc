#include "worker/executor.h"

#include <algorithm>

#include "common/log.h"
#include "common/status.h"
#include "worker/warm_up.h"

namespace penstock::worker {
namespace {

constexpr int64_t kResultRingCheckNs = 20'000'000;
// A plan that follows a step this closely is worth spinning for.
constexpr uint64_t kBusyNs = 1'000'000;

uint64_t NowNs() { return static_cast<uint64_t>(shm::MonotonicNs()); }

int MaxRows(const ExecutorOptions& options) {
  return std::min(options.limits.num_slots, options.max_num_batched_tokens);
}

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
  RETURN_IF_ERROR(WarmUp(backend, decoder,
                         {.max_tokens = options.max_num_batched_tokens,
                          .max_rows = MaxRows(options),
                          .max_model_len = options.limits.max_model_len,
                          .page_size = options.limits.page_size},
                         executor->tokens_));
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
      slots_(options.limits) {
  const int depth = backend->max_steps_in_flight();
  flights_.reserve(depth);
  for (int i = 0; i < depth; ++i) {
    flights_.emplace_back(options.max_num_batched_tokens, MaxRows(options));
  }
}

Executor::~Executor() { StopFinishing(); }

absl::Status Executor::Run(const std::atomic<bool>& stop) {
  stop_ = &stop;
  Heartbeat();
  if (overlapped()) finisher_ = std::thread([this] { FinishSteps(); });
  absl::Status status = TakeRecords();
  StopFinishing();
  return status;
}

absl::Status Executor::TakeRecords() {
  while (!stop_->load(std::memory_order_acquire)) {
    // Before anything is looked at that may have changed when it is notified.
    const uint32_t seen = header_->plan_event.Current();
    const std::byte* record = plans_.Next();
    if (record == nullptr) {
      if (overlapped()) RETURN_IF_ERROR(WaitForFlights(flights_.size()));
      WaitForPlan(seen);
      continue;
    }
    RETURN_IF_ERROR(TakeRecord(record));
    // The plan and what it names are no longer needed: its step is out, or on the device.
    area_->plan_cursor.store(plans_.cursor(), std::memory_order_release);
    Heartbeat();
    header_->scheduler_event.Notify();
  }
  return absl::OkStatus();
}

void Executor::WaitForPlan(uint32_t seen) {
  const uint64_t now = NowNs();
  const bool busy = now - area_->heartbeat_ns.load(std::memory_order_relaxed) < kBusyNs;
  if (!plans_.Empty() || stop_->load(std::memory_order_acquire)) return;
  header_->plan_event.Wait(seen, shm::kNoDeadline, busy ? options_.spin_ns : 0);
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
      return Reset(header.epoch);
    case shm::PlanKind::kStep:
      return Step(header);
    default:
      return Internal("plan: unknown kind {}", static_cast<uint32_t>(header.kind));
  }
}

absl::Status Executor::Reset(uint64_t epoch) {
  RETURN_IF_ERROR(WaitForFlights(0));
  slots_.Reset();
  epoch_ = epoch;
  last_step_ = 0;
  device_free_ns_ = 0;
  if (collective_ != nullptr) collective_->Reset(epoch);
  area_->acked_epoch.store(epoch, std::memory_order_release);
  spdlog::info("msg=\"epoch begun\" epoch={}", epoch);
  return absl::OkStatus();
}

absl::Status Executor::Step(const shm::PlanHeader& header) {
  // Steps before the first Reset were for the process that was here before.
  if (epoch_ == 0) return absl::OkStatus();
  if (header.epoch != epoch_ || header.step != last_step_ + 1) {
    return Internal("plan: step {} of epoch {} follows step {} of epoch {}", header.step,
                    header.epoch, last_step_, epoch_);
  }
  last_step_ = header.step;
  const uint64_t plan_ns = NowNs();
  RETURN_IF_ERROR(WaitForFlights(flights_.size() - 1));
  Flight& flight = flights_[num_launched_ % flights_.size()];
  flight.epoch = header.epoch;
  flight.step = header.step;
  flight.times = {.plan_ns = plan_ns};
  // With no request bound the device is not idle for want of a plan.
  flight.device_was_due = slots_.num_bound() > 0;
  StepPlan plan;
  RETURN_IF_ERROR(ParseStep(header, &plan));
  RETURN_IF_ERROR(Prepare(plan, &flight.batch));
  RETURN_IF_ERROR(Launch(&flight));
  if (!overlapped()) return Finish(&flight);
  {
    std::lock_guard lock(mutex_);
    ++num_launched_;
  }
  changed_.notify_all();
  return absl::OkStatus();
}

absl::Status Executor::Prepare(const StepPlan& plan, StepBatch* batch) {
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
  return batch->Build(plan, &slots_);
}

absl::Status Executor::Launch(Flight* flight) {
  flight->times.begin_ns = NowNs();
  if (const auto copies = flight->batch.copies(); !copies.empty()) {
    RETURN_IF_ERROR(decoder_->CopyPages(copies));
  }
  if (flight->batch.empty()) return absl::OkStatus();
  if (collective_ != nullptr) collective_->BeginPlan(plans_.cursor());
  return decoder_->Step(flight->batch.inputs(), tokens_);
}

absl::Status Executor::Finish(Flight* flight) {
  StepTimes& times = flight->times;
  kernels::StepReport report;
  if (!flight->batch.empty()) {
    ASSIGN_OR_RETURN(report, backend_->WaitStep());
  }
  times.end_ns = NowNs();
  const uint64_t since_plan_ns = times.begin_ns - times.plan_ns;
  if (overlapped()) {
    const auto idle_ns = static_cast<uint64_t>(report.idle_ns);
    times.idle_ns = flight->device_was_due ? idle_ns : std::min(idle_ns, since_plan_ns);
    // It may have waited for the step before.
    times.begin_ns = times.end_ns -
                     std::min(times.end_ns - times.begin_ns, static_cast<uint64_t>(report.run_ns));
  } else {
    const bool due = flight->device_was_due && device_free_ns_ != 0;
    times.idle_ns = due ? times.begin_ns - device_free_ns_ : since_plan_ns;
    device_free_ns_ = times.end_ns;
  }
  Publish(*flight);
  return absl::OkStatus();
}

void Executor::Publish(const Flight& flight) {
  while (!results_.TryWrite(flight.epoch, flight.step, flight.batch, flight.times)) {
    // A scheduler that is alive reads on; one that came anew does not want this epoch's results.
    if (header_->epoch.load(std::memory_order_acquire) != flight.epoch ||
        stop_->load(std::memory_order_acquire)) {
      return;
    }
    const uint32_t seen = header_->plan_event.Current();
    header_->plan_event.Wait(seen, shm::MonotonicNs() + kResultRingCheckNs);
    Heartbeat();
  }
}

void Executor::FinishSteps() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return quit_ || num_launched_ > num_finished_; });
    if (quit_) return;
    Flight& flight = flights_[num_finished_ % flights_.size()];
    lock.unlock();
    const absl::Status status = Finish(&flight);
    header_->scheduler_event.Notify();
    lock.lock();
    if (!status.ok()) {
      finish_error_ = status;
      header_->plan_event.Notify();  // the other thread may wait for a plan
    }
    ++num_finished_;
    changed_.notify_all();
    if (!status.ok()) return;
  }
}

void Executor::StopFinishing() {
  if (!finisher_.joinable()) return;
  {
    std::lock_guard lock(mutex_);
    quit_ = true;
  }
  changed_.notify_all();
  finisher_.join();
}

absl::Status Executor::WaitForFlights(uint64_t most) {
  if (!overlapped()) return absl::OkStatus();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !finish_error_.ok() || num_launched_ - num_finished_ <= most; });
  return finish_error_;
}

}  // namespace penstock::worker
