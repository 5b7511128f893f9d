// penstock-worker: one rank of an engine. Flags may be spelt with dashes or underscores.
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "common/log.h"
#include "worker/worker.h"

ABSL_FLAG(std::string, engine_id, "default", "engine to serve: names the shared-memory segment");
ABSL_FLAG(int, rank, 0, "this worker's rank in the engine");
ABSL_FLAG(std::string, model, "",
          "a GGUF file or the folder of a Hugging Face checkpoint (may be left out with "
          "--device=null)");
ABSL_FLAG(std::string, load_format, "auto",
          "auto: the model's weights; dummy: random ones, made from its configuration alone");
ABSL_FLAG(std::string, device, "cpu", "cpu, cuda, or null: computes nothing, to measure the rest");
ABSL_FLAG(std::string, dtype, "auto",
          "auto: fast; float32: the same bits in any batch and on any number of ranks");
ABSL_FLAG(int, threads, 0, "threads to compute with; 0: the machine's cores shared by the ranks");
ABSL_FLAG(int, max_model_len, 0, "longest request in tokens, prompt and output; 0: the model's");
ABSL_FLAG(int, max_num_batched_tokens, 512, "most tokens in a step");
ABSL_FLAG(int, block_size, 16, "tokens of a KV page");
ABSL_FLAG(int64_t, kv_cache_memory_mb, 0,
          "memory for the KV cache, in MiB; 0: 1024 on a CPU, and on a GPU what "
          "--gpu-memory-utilization leaves");
ABSL_FLAG(double, gpu_memory_utilization, 0.9,
          "share of the GPU's memory to use, for weights, activations and the KV cache together");
ABSL_FLAG(bool, enforce_eager, false, "launch every kernel by itself: no CUDA graphs (debugging)");
ABSL_FLAG(int, num_kv_pages, 0, "number of KV pages; 0: as --kv-cache-memory-mb says");
ABSL_FLAG(int64_t, null_step_us, 0, "how long a step of the null device takes, in microseconds");
ABSL_FLAG(int, attach_timeout_s, 60, "how long to wait for the scheduler's segment, in seconds");
ABSL_FLAG(bool, die_with_parent, false, "end when the process that started this one does");

namespace {

std::atomic<bool> stop{false};

extern "C" void OnStopSignal(int) {
  stop.store(true, std::memory_order_release);
  // Not attached yet: there is nothing to finish.
  if (!penstock::worker::WakeWorker()) _exit(penstock::worker::kExitOk);
}

void HandleSignals() {
  struct sigaction action = {};
  action.sa_handler = OnStopSignal;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
}

// --max-model-len=1 -> --max_model_len=1.
std::vector<std::string> WithUnderscores(int argc, char** argv) {
  std::vector<std::string> args(argv, argv + argc);
  for (std::string& arg : args) {
    if (!arg.starts_with("--")) continue;
    const size_t end = std::min(arg.find('='), arg.size());
    std::replace(arg.begin() + 2, arg.begin() + static_cast<ptrdiff_t>(end), '-', '_');
  }
  return args;
}

penstock::worker::WorkerOptions OptionsFromFlags() {
  penstock::worker::WorkerOptions options;
  options.engine_id = absl::GetFlag(FLAGS_engine_id);
  options.rank = absl::GetFlag(FLAGS_rank);
  options.model = absl::GetFlag(FLAGS_model);
  options.load_format = absl::GetFlag(FLAGS_load_format);
  options.device = absl::GetFlag(FLAGS_device);
  options.dtype = absl::GetFlag(FLAGS_dtype);
  options.threads = absl::GetFlag(FLAGS_threads);
  options.max_model_len = absl::GetFlag(FLAGS_max_model_len);
  options.max_num_batched_tokens = absl::GetFlag(FLAGS_max_num_batched_tokens);
  options.block_size = absl::GetFlag(FLAGS_block_size);
  options.kv_cache_memory_mb = absl::GetFlag(FLAGS_kv_cache_memory_mb);
  options.gpu_memory_utilization = absl::GetFlag(FLAGS_gpu_memory_utilization);
  options.enforce_eager = absl::GetFlag(FLAGS_enforce_eager);
  options.num_kv_pages = absl::GetFlag(FLAGS_num_kv_pages);
  options.null_step_us = absl::GetFlag(FLAGS_null_step_us);
  options.attach_timeout_s = absl::GetFlag(FLAGS_attach_timeout_s);
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage("One rank of a Penstock engine; see --help=worker/main.");
  std::vector<std::string> args = WithUnderscores(argc, argv);
  std::vector<char*> pointers;
  pointers.reserve(args.size());
  for (std::string& arg : args) pointers.push_back(arg.data());
  const std::vector<char*> rest =
      absl::ParseCommandLine(static_cast<int>(pointers.size()), pointers.data());
  penstock::InitLogging("worker-" + std::to_string(absl::GetFlag(FLAGS_rank)));
  if (rest.size() > 1) {
    spdlog::error("msg=\"unexpected argument\" argument=\"{}\"", rest[1]);
    return penstock::worker::kExitBadInput;
  }
  HandleSignals();
  if (absl::GetFlag(FLAGS_die_with_parent)) prctl(PR_SET_PDEATHSIG, SIGTERM);
  return penstock::worker::RunWorker(OptionsFromFlags(), stop);
}
