// penstock bench engine: a scheduler and its workers without a router, measured over their wire.

#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "common/log.h"
#include "tools/penstock/bench/bench_engine.h"
#include "tools/penstock/bench/engine_process.h"
#include "tools/penstock/commands.h"
#include "tools/penstock/progress.h"

namespace penstock::launcher {
namespace {

using bench::EngineBench;
using bench::EngineBenchOptions;
using bench::EngineProcess;
using bench::EngineTransport;
using bench::Json;

constexpr Flag kOwnFlags[] = {
    {"batch-sizes", "A,B,..", "1,8,32,64,128,256", kLauncher,
     "decode latency for each; none: leave it out"},
    {"input-len", "N", "128", kLauncher, "ids in a prompt of it"},
    {"output-len", "N", "129", kLauncher, "ids asked for in it"},
    {"prefill", "BxL,..", "1x512,1x2048,16x2048", kLauncher,
     "prefill latency of B prompts of L ids each; none: leave it out"},
    {"max-concurrency", "A,B,..", "none", kLauncher,
     "also run a load for each number of requests open at once"},
    {"num-prompts", "A,B,..", "100", kLauncher, "requests of each load"},
    {"request-rate", "R", "inf", kLauncher, "requests a second of a load, a Poisson process"},
    {"load-input-len", "N", "1024", kLauncher, "ids in a prompt of a load"},
    {"load-output-len", "N", "128", kLauncher, "ids asked for in a load"},
    {"repeat", "N", "3", kLauncher, "times each latency is taken; medians count"},
    {"seed", "N", "0", kLauncher, "of the prompts' random ids"},
    {"json", "FILE", "", kLauncher, "write the figures there; -: to standard output, nothing else"},
    {"engine", "ADDRESS", "", kLauncher,
     "measure a scheduler that runs: tcp://host:port or ipc:///path"},
    {"start-timeout-s", "N", "600", kLauncher, "how long the engine may take to be ready"},
    {"log-level", "LEVEL", "warning", kLauncher, "debug, info, warning or error"},
    {"help", "", "", kLauncher, "this"},
};

constexpr std::string_view kHelp = R"(usage: penstock bench engine MODEL [flags]
       penstock bench engine --device null [flags]
       penstock bench engine --engine ADDRESS [flags]

Starts a scheduler and its workers without a router and measures them with random token ids over their own wire:
 - decode latency: TPOT = (time(output-len) - time(1)) / (output-len - 1), where time(n) is how long a whole batch
   takes from being sent until every request has n ids;
 - prefill latency: how long a batch takes until every prompt has its first id;
 - with --max-concurrency: a load, whose requests per second, TTFT, TPOT, ITL and E2E it shows.
Greedy, end-of-sequence ignored, no prompt used twice.

)";

std::vector<Flag> AllFlags() {
  std::vector<Flag> flags(std::begin(kOwnFlags), std::end(kOwnFlags));
  flags.insert(flags.end() - 1, EngineFlags().begin(), EngineFlags().end());
  return flags;
}

absl::StatusOr<EngineBenchOptions> Options(const CommandLine& line) {
  constexpr int kMax = 1 << 24;
  EngineBenchOptions options;
  ASSIGN_OR_RETURN(options.batch_sizes, bench::IntegerList(line, "batch-sizes"));
  ASSIGN_OR_RETURN(options.input_len, IntegerFlag(line, "input-len", 1, kMax));
  ASSIGN_OR_RETURN(options.output_len, IntegerFlag(line, "output-len", 2, kMax));
  ASSIGN_OR_RETURN(options.prefills, bench::ShapeList(line, "prefill"));
  ASSIGN_OR_RETURN(options.loads, bench::LoadShapes(line, "max-concurrency", "num-prompts"));
  if (options.loads.front().max_concurrency == 0) options.loads.clear();  // "none"
  ASSIGN_OR_RETURN(options.request_rate, bench::Rate(line, "request-rate"));
  ASSIGN_OR_RETURN(options.load_input_len, IntegerFlag(line, "load-input-len", 1, kMax));
  ASSIGN_OR_RETURN(options.load_output_len, IntegerFlag(line, "load-output-len", 1, kMax));
  ASSIGN_OR_RETURN(options.repeat, IntegerFlag(line, "repeat", 1, 1000));
  ASSIGN_OR_RETURN(options.seed, IntegerFlag(line, "seed", 0, INT32_MAX));
  if (!line.Has("engine")) {
    ASSIGN_OR_RETURN(options.max_num_seqs, IntegerFlag(line, "max-num-seqs", 1, 65536));
  }
  return options;
}

absl::Status CheckSource(const CommandLine& line) {
  if (line.positional.size() > 1) {
    return InvalidArgument("unexpected \"{}\": give one MODEL", line.positional[1]);
  }
  if (line.Has("engine") && !line.positional.empty()) {
    return InvalidArgument("give MODEL to start an engine, or --engine to measure one that runs");
  }
  if (line.positional.empty() && !line.Has("engine") && line.Get("device") != "null") {
    return InvalidArgument("give the MODEL to measure: penstock bench engine MODEL [flags]");
  }
  return absl::OkStatus();
}

// Starts the engine whose sockets lie in `sockets`.
absl::StatusOr<std::unique_ptr<EngineProcess>> StartEngine(const std::vector<Flag>& flags,
                                                           const CommandLine& line,
                                                           const SocketDirectory& sockets) {
  std::string model;
  if (!line.positional.empty()) {
    ASSIGN_OR_RETURN(model, CheckModel(line.positional[0]));
  }
  setenv("PENSTOCK_LOG_LEVEL", line.Get("log-level").c_str(), 1);
  const std::string engine_id =
      line.Has("engine-id") ? line.Get("engine-id") : fmt::format("bench-{}", getpid());
  ASSIGN_OR_RETURN(std::vector<GroupSpec> groups,
                   EngineGroups(flags, line, model, engine_id, sockets.EngineAddress()));
  return EngineProcess::Start(std::move(groups), engine_id, sockets.path(),
                              "penstock bench engine");
}

// Returns the seconds it took. `engine` may be null.
absl::StatusOr<double> WaitUntilReady(EngineTransport& transport, EngineProcess* engine,
                                      int timeout_s, bench::Clock::time_point begin) {
  auto seconds = [begin] {
    return std::chrono::duration<double>(bench::Clock::now() - begin).count();
  };
  Progress bar("starting", static_cast<size_t>(timeout_s));
  RETURN_IF_ERROR(transport.WaitUntilReady([&](const std::string& reason) -> absl::Status {
    if (engine != nullptr) RETURN_IF_ERROR(engine->CheckRunning());
    if (seconds() > timeout_s) {
      return DeadlineExceeded("the engine is not ready after {} s: {}", timeout_s, reason);
    }
    bar.Show(static_cast<size_t>(seconds()), "s: " + reason);
    return absl::OkStatus();
  }));
  return seconds();
}

absl::Status Run(const std::vector<Flag>& flags, CommandLine line) {
  RETURN_IF_ERROR(CheckSource(line));
  RETURN_IF_ERROR(CompleteEngineFlags(&line));
  ASSIGN_OR_RETURN(const EngineBenchOptions options, Options(line));
  ASSIGN_OR_RETURN(const int timeout_s, IntegerFlag(line, "start-timeout-s", 1, 86400));
  Json report = bench::ReportHead("engine");
  report["flags"] = line.values;
  report["model"] = line.positional.empty() ? "" : line.positional[0];

  SocketDirectory sockets;
  RETURN_IF_ERROR(sockets.Make());
  const std::string address = line.Has("engine") ? line.Get("engine") : sockets.EngineAddress();
  const bench::Clock::time_point begin = bench::Clock::now();
  std::unique_ptr<EngineProcess> engine;  // before the transport, whose threads no fork may see
  if (!line.Has("engine")) {
    ASSIGN_OR_RETURN(engine, StartEngine(flags, line, sockets));
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<EngineTransport> transport,
                   EngineTransport::Connect(address));
  ASSIGN_OR_RETURN(const double start_s,
                   WaitUntilReady(*transport, engine.get(), timeout_s, begin));
  const bool quiet = line.Get("json") == "-";
  if (engine != nullptr) {
    report["start_to_ready_s"] = start_s;
    if (!quiet) fmt::print("ready after {:.2f} s\n", start_s);
  }
  RETURN_IF_ERROR(EngineBench(*transport, options, quiet).Run(&report));
  return line.Has("json") ? bench::WriteReport(report, line.Get("json")) : absl::OkStatus();
}

}  // namespace

int BenchEngine(std::span<char* const> args) {
  const std::vector<Flag> flags = AllFlags();
  const absl::StatusOr<CommandLine> line = Parse(flags, args);
  if (line.ok() && line->Has("help")) {
    fmt::print("{}{}", kHelp, Describe(flags));
    return 0;
  }
  const absl::Status status = line.ok() ? Run(flags, *line) : line.status();
  if (status.ok()) return 0;
  fmt::print(stderr, "penstock bench engine: {}\n", Message(status));
  const bool bad_input = absl::IsInvalidArgument(status) || absl::IsNotFound(status) ||
                         absl::IsPermissionDenied(status) || absl::IsFailedPrecondition(status);
  return bad_input ? kExitBadInput : 1;
}

}  // namespace penstock::launcher
