// penstock serve: one router, one scheduler and a worker a rank, supervised.

#include <stdlib.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "common/log.h"
#include "common/shm/segment.h"
#include "common/status.h"
#include "tools/penstock/commands.h"
#include "tools/penstock/engine.h"
#include "tools/penstock/flags.h"
#include "tools/penstock/progress.h"
#include "tools/penstock/supervisor.h"

namespace penstock::launcher {
namespace {

constexpr Flag kOwnFlags[] = {
    {"host", "ADDRESS", "127.0.0.1", kRouter, "address to listen on"},
    {"port", "N", "8000", kRouter, "OpenAI HTTP port"},
    {"grpc-port", "N", "50051", kRouter, "gRPC port; 0: none"},
    {"metrics-port", "N", "0", kScheduler,
     "the scheduler's own metrics; 0: only in the router's /metrics"},
    {"served-model-name", "A,B", "", kRouter, "names clients may ask for [the file's name]"},
    {"generation-config", "auto|none", "auto", kRouter,
     "auto: requests default to what the checkpoint's generation_config.json says of sampling"},
    {"api-key", "KEY", "", kRouter, "clients must send it as a bearer token"},
    {"grpc-message-per-token", "", "", kRouter, "never put two tokens into one gRPC message"},
    {"engine-timeout-s", "N", "", kRouter,
     "how long a stream waits for an engine that is gone [60]"},
    {"max-body-mb", "N", "", kRouter, "largest HTTP request [8]"},
    {"drain-timeout-s", "N", "30", kRouter | kScheduler,
     "how long running streams may take to end on SIGTERM"},
    {"log-level", "LEVEL", "", kLauncher, "debug, info, warning or error [info]"},
    {"help", "", "", kLauncher, "this"},
};

std::vector<Flag> AllFlags() {
  std::vector<Flag> flags(std::begin(kOwnFlags), std::end(kOwnFlags));
  flags.insert(flags.end() - 1, EngineFlags().begin(), EngineFlags().end());
  return flags;
}

constexpr std::string_view kHelp = R"(usage: penstock serve MODEL [flags]

Serves MODEL, a GGUF file or the folder of a Hugging Face checkpoint, on this machine: starts a router, a scheduler and
one worker a rank, restarts what dies, and on Ctrl-C or SIGTERM lets running streams end.

)";

absl::Status CompleteFlags(CommandLine* completed) {
  const CommandLine& line = *completed;
  RETURN_IF_ERROR(IntegerFlag(line, "port", 1, 65535).status());
  RETURN_IF_ERROR(IntegerFlag(line, "grpc-port", 0, 65535).status());
  RETURN_IF_ERROR(IntegerFlag(line, "metrics-port", 0, 65535).status());
  const std::string generation_config = line.Get("generation-config");
  if (generation_config != "auto" && generation_config != "none") {
    return InvalidArgument("--generation-config {} must be auto or none", generation_config);
  }
  return CompleteEngineFlags(completed);
}

void PrintReady(const CommandLine& line, const std::string& model) {
  const std::string name = ModelName(line, model);
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

absl::StatusOr<int> Run(std::span<const Flag> flags, CommandLine line) {
  if (line.positional.size() != 1) {
    return InvalidArgument(
        "give one MODEL, a GGUF file or the folder of a checkpoint: penstock serve MODEL [flags]");
  }
  RETURN_IF_ERROR(CompleteFlags(&line));
  ASSIGN_OR_RETURN(const int drain_timeout_s, IntegerFlag(line, "drain-timeout-s", 0, 86400));
  ASSIGN_OR_RETURN(const std::string model, CheckModel(line.positional[0]));
  if (line.Has("log-level")) setenv("PENSTOCK_LOG_LEVEL", line.Get("log-level").c_str(), 1);
  InitLogging("penstock");

  const std::string engine_id =
      line.Has("engine-id") ? line.Get("engine-id") : fmt::format("serve-{}", getpid());
  SocketDirectory sockets;
  RETURN_IF_ERROR(sockets.Make());
  const std::string address = sockets.EngineAddress();
  ASSIGN_OR_RETURN(std::vector<GroupSpec> groups,
                   EngineGroups(flags, line, model, engine_id, address));
  // Groups are ended in this order: the router first.
  groups.insert(groups.begin(), {"router",
                                 {MakeProcess("router", "penstock-router", kRouter, flags, line,
                                              {"--engine=" + address, "--model=" + model})}});

  TerminalLine progress;
  bool starting = true, ready = false;
  Supervisor supervisor(std::move(groups), drain_timeout_s, [&](std::string_view state) {
    if (state == "READY=1" || state == "STOPPING=1") {
      starting = false;
      progress.Clear();
    }
    if (state == "READY=1" && !std::exchange(ready, true)) PrintReady(line, model);
    constexpr std::string_view kStatus = "STATUS=";
    if (starting && state.starts_with(kStatus)) {
      const std::string text = ReadinessText(state.substr(kStatus.size()));
      if (text.empty()) {
        progress.Clear();
      } else {
        progress.Show(text);
      }
    }
  });
  absl::StatusOr<int> code = supervisor.Run();
  // The scheduler removes its segment itself; this is for one that was killed.
  RETURN_IF_ERROR(shm::Segment::Remove(engine_id));
  return code;
}

}  // namespace

int Serve(std::span<char* const> args) {
  const std::vector<Flag> flags = AllFlags();
  absl::StatusOr<CommandLine> line = Parse(flags, args);
  if (line.ok() && line->Has("help")) {
    fmt::print("{}{}", kHelp, Describe(flags));
    return 0;
  }
  absl::StatusOr<int> code = line.ok() ? Run(flags, *line) : absl::StatusOr<int>(line.status());
  if (code.ok()) return *code;
  fmt::print(stderr, "penstock serve: {}\n", Message(code.status()));
  return kExitBadInput;
}

}  // namespace penstock::launcher
