#include "worker/worker.h"

#include <unistd.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <random>
#include <thread>

#include "common/log.h"
#include "common/shm/segment.h"
#include "common/status.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/null/null_backend.h"
#ifdef PENSTOCK_CUDA
#include "kernels/cuda/cuda_backend.h"
#endif
#include "worker/executor.h"
#include "worker/kv/kv_pool.h"
#include "worker/model/decoder.h"
#include "worker/model/spec.h"
#include "worker/parallel/shm_collective.h"
#include "worker/weights/checkpoint.h"
#include "worker/weights/loader.h"

namespace penstock::worker {
namespace {

// What the signal handler may notify; set once attached.
std::atomic<shm::Event*> wake_event{nullptr};

// How long a wait spins where the ranks have cores of their own.
constexpr int64_t kSpinNs = 20'000;

// What the CPU's KV cache gets unless the flag says otherwise.
constexpr int64_t kDefaultKvMemoryMb = 1024;

// A model, loaded and ready to run. Members are destroyed from last to first.
struct LoadedModel {
  ModelSpec spec;
  std::unique_ptr<kernels::Backend> backend;
  KvPoolPlan kv_plan;
  std::unique_ptr<KvPool> kv;
  ModelWeights weights;
  std::unique_ptr<ShmCollective> collective;
  std::unique_ptr<Decoder> decoder;
};

int NumCores() { return std::max(1, static_cast<int>(std::thread::hardware_concurrency())); }

int NumThreads(const WorkerOptions& options, int num_ranks) {
  return options.threads > 0 ? options.threads : std::max(1, NumCores() / num_ranks);
}

absl::Status CheckOptions(const WorkerOptions& options) {
  auto in_range = [](std::string_view flag, int64_t value, int64_t low, int64_t high) {
    if (value >= low && value <= high) return absl::OkStatus();
    return InvalidArgument("{} {} is not in {}..{}", flag, value, low, high);
  };
  if (options.device != "cpu" && options.device != "null" && options.device != "cuda") {
    return InvalidArgument("--device \"{}\" is not known: give cpu, cuda or null", options.device);
  }
  if (options.device == "cuda" && options.dtype == "float32") {
    return InvalidArgument("--dtype float32 is for --device cpu: the GPU computes in bfloat16");
  }
  if (options.dtype != "auto" && options.dtype != "float32") {
    return InvalidArgument("--dtype \"{}\" is not known: give auto or float32", options.dtype);
  }
  if (options.model.empty() && options.device != "null") {
    return InvalidArgument(
        "--model is missing: give the path of a GGUF file or of a folder with a Hugging Face "
        "checkpoint");
  }
  if (options.load_format != "auto" && options.load_format != "dummy") {
    return InvalidArgument("--load-format \"{}\" is not known: give auto or dummy",
                           options.load_format);
  }
  RETURN_IF_ERROR(in_range("--threads", options.threads, 0, 1024));
  RETURN_IF_ERROR(in_range("--max-model-len", options.max_model_len, 0, 1 << 24));
  RETURN_IF_ERROR(in_range("--max-num-batched-tokens", options.max_num_batched_tokens, 1, 1 << 20));
  RETURN_IF_ERROR(in_range("--block-size", options.block_size, 1, 1024));
  RETURN_IF_ERROR(in_range("--kv-cache-memory-mb", options.kv_cache_memory_mb, 0, 1 << 30));
  if (!(options.gpu_memory_utilization > 0 && options.gpu_memory_utilization <= 1)) {
    return InvalidArgument("--gpu-memory-utilization {} is not above 0 and at most 1",
                           options.gpu_memory_utilization);
  }
  return in_range("--num-kv-pages", options.num_kv_pages, 0, 1 << 30);
}

// max_model_len and num_slots bound the page tables.
absl::StatusOr<std::unique_ptr<kernels::Backend>> MakeBackend(const WorkerOptions& options,
                                                              const ModelSpec& spec, int num_ranks,
                                                              [[maybe_unused]] int max_model_len,
                                                              [[maybe_unused]] int num_slots) {
  if (options.device == "cuda") {
#ifdef PENSTOCK_CUDA
    return kernels::cuda::MakeCudaBackend(
        {.num_slots = num_slots,
         .max_pages_per_slot = (max_model_len + options.block_size - 1) / options.block_size,
         .enforce_eager = options.enforce_eager});
#else
    return Unimplemented(
        "--device cuda: this build has no CUDA engine: build where nvcc 13 is installed "
        "(kernels/cuda/README.md), or give --device cpu");
#endif
  }
  if (options.device == "null") {
    return kernels::null::MakeNullBackend(
        {.step_us = options.null_step_us, .vocab_size = spec.vocab_size});
  }
  const auto mode =
      options.dtype == "float32" ? kernels::cpu::Mode::kFloat32 : kernels::cpu::Mode::kFast;
  return kernels::cpu::MakeCpuBackend({.mode = mode, .threads = NumThreads(options, num_ranks)});
}

// The longest request, from the flag and the model.
absl::StatusOr<int> MaxModelLen(const WorkerOptions& options, const ModelSpec& spec) {
  if (options.max_model_len == 0) return spec.max_positions;
  if (options.max_model_len <= spec.max_positions) return options.max_model_len;
  return InvalidArgument("--max-model-len {} is more than the model's {}", options.max_model_len,
                         spec.max_positions);
}

absl::StatusOr<KvPoolOptions> KvOptions(const WorkerOptions& options, const shm::Geometry& geometry,
                                        const ModelSpec& spec) {
  KvPoolOptions kv;
  kv.num_ranks = static_cast<int>(geometry.num_ranks);
  kv.page_size = options.block_size;
  kv.dtype = options.dtype == "float32" ? kernels::DType::kF32 : kernels::DType::kF16;
  if (options.device == "cuda") kv.dtype = kernels::DType::kBF16;
  kv.num_slots = static_cast<int>(geometry.num_slots);
  ASSIGN_OR_RETURN(kv.max_model_len, MaxModelLen(options, spec));
  kv.max_model_len_given = options.max_model_len != 0;
  kv.memory_mb = options.kv_cache_memory_mb > 0 ? options.kv_cache_memory_mb : kDefaultKvMemoryMb;
  kv.num_pages = options.num_kv_pages;
  // The null device keeps nothing: as many pages as could ever be asked for.
  if (options.device == "null") kv.memory_mb = int64_t{1} << 40;
  return kv;
}

// What a device of `memory` has for the KV cache once all else is in place, in MiB.
absl::StatusOr<int64_t> FreeKvMemoryMb(const WorkerOptions& options,
                                       const kernels::DeviceMemory& memory) {
  const int64_t used = memory.total - memory.free;
  const auto budget =
      static_cast<int64_t>(options.gpu_memory_utilization * static_cast<double>(memory.total));
  if (used < budget) return (budget - used) >> 20;
  return ResourceExhausted(
      "no GPU memory is left for the KV cache: {} of {} MiB are in use (weights, activations, "
      "other "
      "programs), {} MiB more than --gpu-memory-utilization {} allows. Raise it, end what else "
      "uses "
      "the GPU (nvidia-smi lists it), lower --max-num-batched-tokens, or shard the model",
      used >> 20, memory.total >> 20, (used - budget) >> 20, options.gpu_memory_utilization);
}

// Whether the device could hold the KV cache at all; whether it has the room now, allocating tells.
absl::Status CheckKvFits(const ModelSpec& spec, const KvPoolPlan& plan,
                         const kernels::DeviceMemory& memory) {
  const int64_t bytes = 2 * plan.layer_bytes * spec.num_layers;
  if (bytes <= memory.total) return absl::OkStatus();
  return InvalidArgument(
      "{} KV pages take {} MiB of memory, the GPU has {}: lower --num-kv-pages or "
      "--kv-cache-memory-mb, or leave both out to take what --gpu-memory-utilization allows",
      plan.num_pages, bytes >> 20, memory.total >> 20);
}

class Worker {
 public:
  Worker(const WorkerOptions& options, const std::atomic<bool>& stop)
      : options_(options), stop_(stop) {}

  absl::Status Run() {
    RETURN_IF_ERROR(CheckOptions(options_));
    RETURN_IF_ERROR(Attach());
    RETURN_IF_ERROR(Load());
    ASSIGN_OR_RETURN(std::unique_ptr<Executor> executor, MakeExecutor());
    Announce();
    return executor->Run(stop_);
  }

  // Tells the scheduler, if there is a segment to tell it in.
  void Fail(const std::string& error) {
    if (segment_ == nullptr) return;
    shm::RankArea& area = segment_->rank(options_.rank);
    const size_t length = error.copy(area.error, sizeof(area.error) - 1);
    area.error[length] = '\0';
    SetState(shm::RankState::kFailed);
  }

 private:
  absl::Status Attach();
  absl::Status Load();
  absl::Status LoadModelWeights(const TensorSource* tensors);
  absl::StatusOr<std::unique_ptr<Executor>> MakeExecutor();
  void Announce();
  void SetState(shm::RankState state);
  absl::Status ReportProgress(float progress, int64_t begin_ns);
  shm::RankArea& area() const { return segment_->rank(options_.rank); }
  int num_ranks() const { return static_cast<int>(segment_->geometry().num_ranks); }
  int64_t spin_ns() const {
    return NumThreads(options_, num_ranks()) * num_ranks() < NumCores() ? kSpinNs : 0;
  }

  const WorkerOptions& options_;
  const std::atomic<bool>& stop_;
  std::unique_ptr<shm::Segment> segment_;
  LoadedModel model_;
  float logged_progress_ = 0;
};

void Worker::SetState(shm::RankState state) {
  area().heartbeat_ns.store(static_cast<uint64_t>(shm::MonotonicNs()));
  area().state.store(static_cast<uint32_t>(state), std::memory_order_release);
  segment_->header().scheduler_event.Notify();
}

absl::Status Worker::Attach() {
  const int64_t deadline = shm::MonotonicNs() + options_.attach_timeout_s * int64_t{1'000'000'000};
  ASSIGN_OR_RETURN(segment_, shm::Segment::Attach(options_.engine_id, options_.rank, deadline));
  wake_event.store(&segment_->header().plan_event);
  shm::RankArea& area = this->area();
  // What the process before us left must not be taken for ours: the incarnation comes last but one.
  area.state.store(static_cast<uint32_t>(shm::RankState::kLoading), std::memory_order_release);
  area.acked_epoch.store(0);
  area.collective_sequence.store(0);
  area.load_progress.store(0.0f);
  area.error[0] = '\0';
  area.pid.store(static_cast<uint32_t>(getpid()));
  area.plan_cursor.store(segment_->header().plan_tail.load(std::memory_order_acquire),
                         std::memory_order_release);
  std::random_device random;
  area.incarnation.store((uint64_t{random()} << 32 | random()) | 1, std::memory_order_release);
  SetState(shm::RankState::kLoading);
  spdlog::info("msg=\"attached\" engine={} ranks={} slots={}", options_.engine_id, num_ranks(),
               segment_->geometry().num_slots);
  return absl::OkStatus();
}

absl::Status Worker::Load() {
  if (options_.device == "cuda" && num_ranks() > 1) {
    return Unimplemented("--tensor-parallel-size {} with --device cuda is not built yet: give 1",
                         num_ranks());
  }
  Checkpoint checkpoint;
  if (options_.model.empty()) {
    checkpoint.spec = NullModelSpec();
  } else {
    const bool with_tensors = options_.device != "null" && options_.load_format != "dummy";
    ASSIGN_OR_RETURN(checkpoint, OpenCheckpoint(options_.model, with_tensors));
  }
  model_.spec = std::move(checkpoint.spec);
  ASSIGN_OR_RETURN(const int max_model_len, MaxModelLen(options_, model_.spec));
  ASSIGN_OR_RETURN(model_.backend, MakeBackend(options_, model_.spec, num_ranks(), max_model_len,
                                               static_cast<int>(segment_->geometry().num_slots)));
  const bool needs_weights = model_.backend->needs_weights();
  RETURN_IF_ERROR(CheckShard(checkpoint.tensors.get(), model_.spec, {options_.rank, num_ranks()}));
  // A bad size is told before the weights are loaded, where it can be known by then.
  ASSIGN_OR_RETURN(KvPoolOptions kv, KvOptions(options_, segment_->geometry(), model_.spec));
  ASSIGN_OR_RETURN(const std::optional<kernels::DeviceMemory> memory, model_.backend->Memory());
  const bool take_what_is_free =
      memory.has_value() && options_.kv_cache_memory_mb == 0 && kv.num_pages == 0;
  if (!take_what_is_free) {
    ASSIGN_OR_RETURN(model_.kv_plan, PlanKvPool(model_.spec, kv));
    if (memory.has_value()) RETURN_IF_ERROR(CheckKvFits(model_.spec, model_.kv_plan, *memory));
  } else {
    model_.kv_plan.max_model_len = max_model_len;
  }
  if (needs_weights) {
    RETURN_IF_ERROR(LoadModelWeights(checkpoint.tensors.get()));
  } else {
    model_.weights.layers.resize(model_.spec.num_layers);
  }
  area().load_progress.store(1.0f);
  if (num_ranks() > 1) {
    ASSIGN_OR_RETURN(model_.collective,
                     ShmCollective::Create(segment_.get(), options_.rank, spin_ns()));
  }
  model_.kv = std::make_unique<KvPool>(model_.spec.num_layers);
  DecoderOptions decoder;
  decoder.num_ranks = num_ranks();
  decoder.max_tokens = options_.max_num_batched_tokens;
  decoder.max_rows = static_cast<int>(segment_->geometry().num_slots);
  decoder.page_size = options_.block_size;
  decoder.rank_invariant = options_.dtype == "float32";
  ASSIGN_OR_RETURN(model_.decoder,
                   Decoder::Create(model_.backend.get(), model_.spec, &model_.weights,
                                   model_.kv->layers(), model_.collective.get(), decoder));
  if (take_what_is_free) {
    ASSIGN_OR_RETURN(const auto left, model_.backend->Memory());
    ASSIGN_OR_RETURN(kv.memory_mb, FreeKvMemoryMb(options_, *left));
    kv.memory_flag = "what --gpu-memory-utilization leaves for it (MiB)";
    ASSIGN_OR_RETURN(model_.kv_plan, PlanKvPool(model_.spec, kv));
  }
  return model_.kv->Allocate(model_.backend.get(), kv, model_.kv_plan);
}

// `tensors` null: random weights.
absl::Status Worker::LoadModelWeights(const TensorSource* tensors) {
  const int64_t begin_ns = shm::MonotonicNs();
  spdlog::info("msg=\"loading weights\" model={} load_format={} architecture={} layers={}",
               options_.model, options_.load_format, model_.spec.architecture,
               model_.spec.num_layers);
  auto progress = [&](float done) { return ReportProgress(done, begin_ns); };
  ASSIGN_OR_RETURN(model_.weights,
                   LoadWeights(tensors, model_.spec, {options_.rank, num_ranks()},
                               model_.kv_plan.max_model_len, model_.backend.get(), progress));
  return absl::OkStatus();
}

absl::Status Worker::ReportProgress(float progress, int64_t begin_ns) {
  if (stop_.load(std::memory_order_acquire)) return Cancelled("told to stop while loading");
  area().load_progress.store(progress, std::memory_order_release);
  area().heartbeat_ns.store(static_cast<uint64_t>(shm::MonotonicNs()));
  // On a terminal the launcher draws it.
  const float log_at = isatty(STDERR_FILENO) != 0 ? 1.0f : std::min(1.0f, logged_progress_ + 0.25f);
  if (progress < log_at) return absl::OkStatus();
  logged_progress_ = progress;
  spdlog::info("msg=\"weights loaded\" percent={:.0f} seconds={:.2f}", progress * 100,
               static_cast<double>(shm::MonotonicNs() - begin_ns) * 1e-9);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Executor>> Worker::MakeExecutor() {
  ExecutorOptions options;
  options.rank = options_.rank;
  options.max_num_batched_tokens = options_.max_num_batched_tokens;
  options.limits.num_slots = static_cast<int>(segment_->geometry().num_slots);
  options.limits.num_pages = model_.kv_plan.num_pages;
  options.limits.page_size = options_.block_size;
  options.limits.max_model_len = model_.kv_plan.max_model_len;
  options.limits.vocab_size = model_.spec.vocab_size;
  options.spin_ns = spin_ns();
  return Executor::Create(segment_.get(), model_.backend.get(), model_.decoder.get(),
                          model_.collective.get(), options);
}

void Worker::Announce() {
  shm::RankArea& area = this->area();
  area.num_pages.store(static_cast<uint32_t>(model_.kv_plan.num_pages));
  area.page_size.store(static_cast<uint32_t>(options_.block_size));
  area.max_model_len.store(static_cast<uint32_t>(model_.kv_plan.max_model_len));
  area.vocab_size.store(static_cast<uint32_t>(model_.spec.vocab_size));
  area.max_num_batched_tokens.store(static_cast<uint32_t>(options_.max_num_batched_tokens));
  SetState(shm::RankState::kReady);
  spdlog::info(
      "msg=\"ready\" device={} dtype={} threads={} kv_pages={} block_size={} max_model_len={} "
      "vocab={}",
      options_.device, options_.dtype, NumThreads(options_, num_ranks()), model_.kv_plan.num_pages,
      options_.block_size, model_.kv_plan.max_model_len, model_.spec.vocab_size);
}

int ExitCode(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
    case absl::StatusCode::kCancelled:
      return kExitOk;
    case absl::StatusCode::kAborted:
      return kExitPeerDied;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kOutOfRange:
      return kExitBadInput;
    default:
      return kExitError;
  }
}

}  // namespace

bool WakeWorker() {
  shm::Event* event = wake_event.load();
  if (event == nullptr) return false;
  event->Notify();
  return true;
}

int RunWorker(const WorkerOptions& options, const std::atomic<bool>& stop) {
  Worker worker(options, stop);
  const absl::Status status = worker.Run();
  wake_event.store(nullptr);
  // A group that is told to stop ends in no particular order.
  const bool stopped = status.ok() || stop.load(std::memory_order_acquire);
  if (stopped) {
    spdlog::info("msg=\"stopped\"");
    return kExitOk;
  }
  const int code = ExitCode(status);
  spdlog::error("msg=\"{}\" exit_code={}", Message(status), code);
  worker.Fail(Message(status));
  return code;
}

}  // namespace penstock::worker
