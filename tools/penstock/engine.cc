#include "tools/penstock/engine.h"

#include <stdlib.h>
#include <unistd.h>

#include <charconv>
#include <filesystem>

#include "common/shm/layout.h"

namespace penstock::launcher {
namespace {

constexpr Flag kFlags[] = {
    {"device", "cpu|cuda|null", "cpu", kWorker,
     "what computes; null returns at once, to measure the rest"},
    {"load-format", "auto|dummy", "auto", kRouter | kWorker,
     "dummy: random weights, made from the model's configuration alone"},
    {"dtype", "auto|float32", "auto", kWorker,
     "auto: fast; float32: the same bits whatever the batch"},
    {"tensor-parallel-size", "N", "1", kScheduler, "ranks to shard the model over, a process each"},
    {"threads", "N", "", kWorker, "threads a rank [cores / ranks]"},
    {"max-model-len", "N", "", kWorker, "longest prompt + output [the model's context]"},
    {"max-num-seqs", "N", "256", kScheduler, "requests running at once"},
    {"max-num-batched-tokens", "N", "", kScheduler | kWorker,
     "tokens computed in a step [512; 2048 with cuda]"},
    {"target-itl-ms", "MS", "", kScheduler,
     "most time between tokens of a request: tunes the prompt tokens of a step [none]"},
    {"max-queued-requests", "N", "", kScheduler,
     "requests of a class waiting before new ones are turned away"},
    {"tenant-weights", "A=W,B=W,..", "", kScheduler, "shares of tenants; who is not named has 1"},
    {"block-size", "N", "", kWorker, "tokens in a KV page [16]"},
    {"kv-cache-memory-mb", "N", "", kWorker,
     "memory for KV pages [1024; with cuda what gpu-memory-utilization leaves]"},
    {"gpu-memory-utilization", "SHARE", "", kWorker,
     "share of a GPU's memory for weights, activations and KV pages [0.9]"},
    {"num-kv-pages", "N", "", kWorker, "KV pages, instead of by memory"},
    {"null-step-us", "N", "", kWorker, "how long the null device takes for a step [0]"},
    {"enforce-eager", "", "", kWorker, "debugging: no CUDA graphs, every kernel by itself"},
    {"no-enable-prefix-caching", "", "", kScheduler,
     "compute every prompt whole: take no KV pages that an earlier request filled"},
    {"no-overlap", "", "", kScheduler,
     "debugging: plan a step only when the last one's results are known"},
    {"record-plans", "FILE", "", kScheduler,
     "record plans and results there, for penstock replay; it will have all requests' token ids"},
    {"check-invariants", "", "", kScheduler,
     "debugging: check the scheduler's accounts after every step"},
    {"engine-id", "NAME", "", kLauncher, "name of the shared-memory segment [made up]"},
};

}  // namespace

std::span<const Flag> EngineFlags() { return kFlags; }

absl::StatusOr<int> IntegerFlag(const CommandLine& line, std::string_view name, int min, int max) {
  const std::string text = line.Get(name);
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < min || value > max) {
    return InvalidArgument("--{} {} must be a whole number from {} to {}", name, text, min, max);
  }
  return value;
}

absl::Status CompleteEngineFlags(CommandLine* completed) {
  const CommandLine& line = *completed;
  if (!line.Has("max-num-batched-tokens")) {
    completed->values["max-num-batched-tokens"] = line.Get("device") == "cuda" ? "2048" : "512";
  }
  RETURN_IF_ERROR(IntegerFlag(line, "tensor-parallel-size", 1, shm::kMaxRanks).status());
  RETURN_IF_ERROR(IntegerFlag(line, "max-num-seqs", 1, 65536).status());
  RETURN_IF_ERROR(IntegerFlag(line, "max-num-batched-tokens", 1, 1 << 20).status());
  const std::string device = line.Get("device");
  if (device != "cpu" && device != "cuda" && device != "null") {
    return InvalidArgument("--device {} must be cpu, cuda or null", device);
  }
  const std::string load_format = line.Get("load-format");
  if (load_format != "auto" && load_format != "dummy") {
    return InvalidArgument("--load-format {} must be auto or dummy", load_format);
  }
  const std::string dtype = line.Get("dtype");
  if (dtype != "auto" && dtype != "float32")
    return InvalidArgument("--dtype {} must be auto or float32", dtype);
  return absl::OkStatus();
}

absl::StatusOr<std::string> CheckModel(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error) &&
      !std::filesystem::is_directory(path, error)) {
    return NotFound(
        "model {}: no such file or folder: give a GGUF file (tools/deps/model fetches a small one) "
        "or the folder of a Hugging Face checkpoint",
        path);
  }
  if (access(path.c_str(), R_OK) != 0)
    return absl::PermissionDeniedError("model " + path + " cannot be read");
  const std::filesystem::path normal = std::filesystem::absolute(path).lexically_normal();
  // "folder/" is "folder".
  return (normal.has_filename() ? normal : normal.parent_path()).string();
}

std::string ModelName(const CommandLine& line, const std::string& model) {
  if (!line.Has("served-model-name")) {
    const std::filesystem::path path(model);
    // A folder's name may have dots that begin no extension.
    return (path.extension() == ".gguf" ? path.stem() : path.filename()).string();
  }
  const std::string names = line.Get("served-model-name");
  return names.substr(0, names.find(','));
}

ProcessSpec MakeProcess(const std::string& name, const std::string& program, unsigned role,
                        std::span<const Flag> flags, const CommandLine& line,
                        std::vector<std::string> own) {
  const std::string bin = std::filesystem::read_symlink("/proc/self/exe").parent_path().string();
  std::vector<std::string> argv = {bin + "/" + program};
  for (std::string& argument : own) argv.push_back(std::move(argument));
  for (std::string& argument : ArgumentsFor(role, flags, line)) argv.push_back(std::move(argument));
  return {name, std::move(argv)};
}

absl::StatusOr<GroupSpec> WorkerGroup(std::span<const Flag> flags, const CommandLine& line,
                                      const std::string& model, const std::string& engine_id) {
  ASSIGN_OR_RETURN(const int ranks, IntegerFlag(line, "tensor-parallel-size", 1, shm::kMaxRanks));
  GroupSpec workers{"workers", {}};
  for (int rank = 0; rank < ranks; ++rank) {
    workers.processes.push_back(MakeProcess(
        fmt::format("worker-{}", rank), "penstock-worker", kWorker, flags, line,
        {"--engine-id=" + engine_id, "--model=" + model, fmt::format("--rank={}", rank)}));
  }
  return workers;
}

absl::StatusOr<std::vector<GroupSpec>> EngineGroups(std::span<const Flag> flags,
                                                    const CommandLine& line,
                                                    const std::string& model,
                                                    const std::string& engine_id,
                                                    const std::string& address) {
  ASSIGN_OR_RETURN(GroupSpec workers, WorkerGroup(flags, line, model, engine_id));
  GroupSpec scheduler{"scheduler",
                      {MakeProcess("scheduler", "penstock-scheduler", kScheduler, flags, line,
                                   {"--engine-id=" + engine_id, "--listen=" + address,
                                    "--model-name=" + ModelName(line, model)})}};
  return std::vector<GroupSpec>{std::move(scheduler), std::move(workers)};
}

absl::Status SocketDirectory::Make() {
  std::string pattern = (std::filesystem::temp_directory_path() / "penstock-XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr)
    return absl::ErrnoToStatus(errno, "cannot make " + pattern);
  path_ = pattern;
  return absl::OkStatus();
}

SocketDirectory::~SocketDirectory() {
  std::error_code ignored;
  if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
}

}  // namespace penstock::launcher
