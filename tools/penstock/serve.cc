// penstock serve: one router, one scheduler and a worker a rank, supervised.

#include <stdlib.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <string>

#include "common/log.h"
#include "common/shm/segment.h"
#include "common/status.h"
#include "tools/penstock/commands.h"
#include "tools/penstock/flags.h"
#include "tools/penstock/supervisor.h"

namespace penstock::launcher {
namespace {

constexpr Flag kFlags[] = {
    {"host", "ADDRESS", "127.0.0.1", kRouter, "address to listen on"},
    {"port", "N", "8000", kRouter, "OpenAI HTTP port"},
    {"grpc-port", "N", "50051", kRouter, "gRPC port; 0: none"},
    {"metrics-port", "N", "0", kScheduler,
     "the scheduler's own metrics; 0: only in the router's /metrics"},
    {"served-model-name", "A,B", "", kRouter, "names clients may ask for [the file's name]"},
    {"api-key", "KEY", "", kRouter, "clients must send it as a bearer token"},
    {"device", "cpu|null", "cpu", kWorker,
     "what computes; null returns at once, to measure the rest"},
    {"dtype", "auto|float32", "auto", kWorker,
     "auto: fast; float32: the same bits whatever the batch"},
    {"tensor-parallel-size", "N", "1", kScheduler, "ranks to shard the model over, a process each"},
    {"threads", "N", "", kWorker, "threads a rank [cores / ranks]"},
    {"max-model-len", "N", "", kWorker, "longest prompt + output [the model's context]"},
    {"max-num-seqs", "N", "256", kScheduler, "requests running at once"},
    {"max-num-batched-tokens", "N", "512", kScheduler | kWorker, "tokens computed in a step"},
    {"max-queued-requests", "N", "", kScheduler,
     "requests waiting before new ones are turned away"},
    {"block-size", "N", "", kWorker, "tokens in a KV page [16]"},
    {"kv-cache-memory-mb", "N", "", kWorker, "memory for KV pages [1024]"},
    {"num-kv-pages", "N", "", kWorker, "KV pages, instead of by memory"},
    {"null-step-us", "N", "", kWorker, "how long the null device takes for a step [0]"},
    {"no-overlap", "", "", kScheduler,
     "debugging: plan a step only when the last one's results are known"},
    {"grpc-message-per-token", "", "", kRouter, "never put two tokens into one gRPC message"},
    {"engine-timeout-s", "N", "", kRouter,
     "how long a stream waits for an engine that is gone [60]"},
    {"max-body-mb", "N", "", kRouter, "largest HTTP request [8]"},
    {"drain-timeout-s", "N", "30", kRouter | kScheduler,
     "how long running streams may take to end on SIGTERM"},
    {"check-invariants", "", "", kScheduler,
     "debugging: check the scheduler's accounts after every step"},
    {"engine-id", "NAME", "", kLauncher, "name of the shared-memory segment [made up]"},
    {"log-level", "LEVEL", "", kLauncher, "debug, info, warning or error [info]"},
    {"help", "", "", kLauncher, "this"},
};

constexpr std::string_view kHelp = R"(usage: penstock serve MODEL [flags]

Serves MODEL, a GGUF file, on this machine: starts a router, a scheduler and one worker a rank, restarts what dies,
and on Ctrl-C or SIGTERM lets running streams end.

)";

absl::StatusOr<int> IntegerFlag(const CommandLine& line, std::string_view name, int min, int max) {
  const std::string text = line.Get(name);
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < min || value > max) {
    return InvalidArgument("--{} {} must be a whole number from {} to {}", name, text, min, max);
  }
  return value;
}

absl::Status CheckValues(const CommandLine& line) {
  RETURN_IF_ERROR(IntegerFlag(line, "port", 1, 65535).status());
  RETURN_IF_ERROR(IntegerFlag(line, "grpc-port", 0, 65535).status());
  RETURN_IF_ERROR(IntegerFlag(line, "metrics-port", 0, 65535).status());
  RETURN_IF_ERROR(IntegerFlag(line, "max-num-seqs", 1, 65536).status());
  RETURN_IF_ERROR(IntegerFlag(line, "max-num-batched-tokens", 1, 1 << 20).status());
  const std::string device = line.Get("device");
  if (device != "cpu" && device != "null") {
    return InvalidArgument("--device {} is not built in: use cpu or null", device);
  }
  const std::string dtype = line.Get("dtype");
  if (dtype != "auto" && dtype != "float32")
    return InvalidArgument("--dtype {} must be auto or float32", dtype);
  return absl::OkStatus();
}

absl::Status CheckModel(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    return NotFound(
        "model {}: no such file: give the path of a GGUF file (tools/deps/model fetches a small "
        "one)",
        path);
  }
  if (access(path.c_str(), R_OK) != 0)
    return absl::PermissionDeniedError("model " + path + " cannot be read");
  return absl::OkStatus();
}

// A directory for the sockets between the processes, removed with the object.
class SocketDirectory {
 public:
  absl::Status Make() {
    std::string pattern = (std::filesystem::temp_directory_path() / "penstock-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr)
      return absl::ErrnoToStatus(errno, "cannot make " + pattern);
    path_ = pattern;
    return absl::OkStatus();
  }
  ~SocketDirectory() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::vector<GroupSpec> Groups(const CommandLine& line, const std::string& model,
                              const std::string& engine_id, const std::string& engine_address,
                              int ranks) {
  const std::string bin = std::filesystem::read_symlink("/proc/self/exe").parent_path().string();
  auto process = [&](const std::string& name, const std::string& program, unsigned role,
                     std::vector<std::string> own) {
    std::vector<std::string> argv = {bin + "/" + program};
    for (std::string& argument : own) argv.push_back(std::move(argument));
    for (std::string& argument : ArgumentsFor(role, kFlags, line))
      argv.push_back(std::move(argument));
    return ProcessSpec{name, std::move(argv)};
  };
  const std::string model_name = line.Has("served-model-name")
                                     ? line.Get("served-model-name")
                                     : std::filesystem::path(model).stem().string();
  GroupSpec workers{"workers", {}};
  for (int rank = 0; rank < ranks; ++rank) {
    workers.processes.push_back(
        process(fmt::format("worker-{}", rank), "penstock-worker", kWorker,
                {"--engine-id=" + engine_id, "--model=" + model, fmt::format("--rank={}", rank)}));
  }
  // In the order in which they are ended.
  return {{"router",
           {process("router", "penstock-router", kRouter,
                    {"--engine=" + engine_address, "--model=" + model})}},
          {"scheduler",
           {process("scheduler", "penstock-scheduler", kScheduler,
                    {"--engine-id=" + engine_id, "--listen=" + engine_address,
                     "--model-name=" + model_name.substr(0, model_name.find(','))})}},
          std::move(workers)};
}

void PrintReady(const CommandLine& line, const std::string& model) {
  std::string name = std::filesystem::path(model).stem().string();
  if (line.Has("served-model-name")) {
    name = line.Get("served-model-name");
    name = name.substr(0, name.find(','));
  }
  std::string host = line.Get("host");
  if (host == "0.0.0.0") host = "127.0.0.1";
  const std::string url = fmt::format("http://{}:{}", host, line.Get("port"));
  const std::string grpc = line.Get("grpc-port") == "0"
                               ? ""
                               : fmt::format(" and gRPC on {}:{}", host, line.Get("grpc-port"));
  const std::string key =
      line.Has("api-key") ? fmt::format(" -H 'Authorization: Bearer {}'", line.Get("api-key")) : "";
  fmt::print("Ready: {} on {}{}\n", name, url, grpc);
  fmt::print(
      "curl {}/v1/chat/completions{} -H 'Content-Type: application/json' -d "
      "'{{\"model\":\"{}\",\"messages\":"
      "[{{\"role\":\"user\",\"content\":\"Hello!\"}}]}}'\n",
      url, key, name);
  std::fflush(stdout);
}

absl::StatusOr<int> Run(const CommandLine& line) {
  if (line.positional.size() != 1) {
    return InvalidArgument("give one MODEL, the path of a GGUF file: penstock serve MODEL [flags]");
  }
  RETURN_IF_ERROR(CheckValues(line));
  ASSIGN_OR_RETURN(const int ranks, IntegerFlag(line, "tensor-parallel-size", 1, shm::kMaxRanks));
  ASSIGN_OR_RETURN(const int drain_timeout_s, IntegerFlag(line, "drain-timeout-s", 0, 86400));
  RETURN_IF_ERROR(CheckModel(line.positional[0]));
  const std::string model = std::filesystem::absolute(line.positional[0]).string();
  if (line.Has("log-level")) setenv("PENSTOCK_LOG_LEVEL", line.Get("log-level").c_str(), 1);
  InitLogging("penstock");

  const std::string engine_id =
      line.Has("engine-id") ? line.Get("engine-id") : fmt::format("serve-{}", getpid());
  SocketDirectory sockets;
  RETURN_IF_ERROR(sockets.Make());
  const std::string engine_address = "ipc://" + sockets.path() + "/engine";

  bool ready = false;
  Supervisor supervisor(Groups(line, model, engine_id, engine_address, ranks), drain_timeout_s,
                        [&](std::string_view state) {
                          if (state == "READY=1" && !std::exchange(ready, true))
                            PrintReady(line, model);
                        });
  absl::StatusOr<int> code = supervisor.Run();
  // The scheduler removes its segment itself; this is for one that was killed.
  RETURN_IF_ERROR(shm::Segment::Remove(engine_id));
  return code;
}

}  // namespace

int Serve(std::span<char* const> args) {
  absl::StatusOr<CommandLine> line = Parse(kFlags, args);
  if (line.ok() && line->Has("help")) {
    fmt::print("{}{}", kHelp, Describe(kFlags));
    return 0;
  }
  absl::StatusOr<int> code = line.ok() ? Run(*line) : absl::StatusOr<int>(line.status());
  if (code.ok()) return *code;
  fmt::print(stderr, "penstock serve: {}\n", Message(code.status()));
  return kExitBadInput;
}

}  // namespace penstock::launcher
