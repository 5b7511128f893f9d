// A worker process from start to end: attach to the engine's segment, load the model, carry out
// plans.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

namespace penstock::worker {

struct WorkerOptions {
  std::string engine_id = "default";
  int rank = 0;
  // A GGUF file or the folder of a Hugging Face checkpoint; may be empty with the null device.
  std::string model;
  std::string load_format = "auto";  // auto; dummy: random weights, no file of weights is read
  std::string device = "cpu";        // cpu, cuda, null
  std::string dtype = "auto";        // auto, float32
  int threads = 0;                   // 0: the machine's cores shared by the ranks
  int max_model_len = 0;             // 0: the model's
  int max_num_batched_tokens = 512;
  int block_size = 16;  // tokens of a KV page
  // 0: what is free of a GPU, up to gpu_memory_utilization; 1024 elsewhere.
  int64_t kv_cache_memory_mb = 0;
  double gpu_memory_utilization = 0.9;  // share of a GPU's memory for weights, activations and KV
  bool enforce_eager = false;           // no CUDA graphs
  int num_kv_pages = 0;                 // > 0: overrides kv_cache_memory_mb
  int64_t null_step_us = 0;
  int attach_timeout_s = 60;
};

// Exit codes, for the launcher: whether starting anew helps.
constexpr int kExitOk = 0;
constexpr int kExitError = 1;     // unexpected: starting anew may help
constexpr int kExitBadInput = 2;  // flags or model: it will not
constexpr int kExitPeerDied = 3;  // another rank died: the group starts anew

// Runs until *stop, which a signal handler may set; while it waits for plans it is to be woken by
// WakeWorker(). Returns the exit code; what went wrong stands in the log and, once attached, in the
// rank's area.
int RunWorker(const WorkerOptions& options, const std::atomic<bool>& stop);

// Makes a waiting RunWorker look at *stop. False if it has not attached yet. Safe in a signal
// handler.
bool WakeWorker();

}  // namespace penstock::worker
