// penstock replay: what --record-plans has written, against the policy or against real ranks.

#include <stdlib.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

#include "common/log.h"
#include "common/shm/segment.h"
#include "scheduler/record/policy_replay.h"
#include "scheduler/record/recording.h"
#include "scheduler/record/worker_replay.h"
#include "tools/penstock/bench/engine_process.h"
#include "tools/penstock/commands.h"
#include "tools/penstock/engine.h"
#include "tools/penstock/progress.h"

namespace penstock::launcher {
namespace {

using bench::EngineProcess;
using scheduler::PolicyReplay;
using scheduler::Recording;
using scheduler::WorkerReplay;

constexpr Flag kOwnFlags[] = {
    {"model", "MODEL", "", kLauncher, "drive ranks of this model; without it the policy"},
    {"device", "cpu|cuda|null", "", kWorker, "what computes [cpu]; null needs no --model"},
    {"tensor-parallel-size", "N", "", kLauncher, "ranks [as recorded]"},
    {"check-invariants", "", "", kLauncher,
     "of the policy: check all its bookkeeping after every event"},
    {"start-timeout-s", "N", "600", kLauncher, "how long the ranks may take to be ready"},
    {"step-timeout-s", "N", "60", kLauncher, "how long a step may take"},
    {"log-level", "LEVEL", "warning", kLauncher, "debug, info, warning or error"},
    {"help", "", "", kLauncher, "this"},
};

constexpr std::string_view kHelp = R"(usage: penstock replay FILE [--check-invariants]
       penstock replay FILE --model MODEL [flags]

Replays a recording that a scheduler wrote with --record-plans (penstock serve MODEL --record-plans FILE):
 - against the policy: what the scheduler was told is told to it again; every plan it makes is compared;
 - against a model: its ranks are given the recorded plans; every id they sample is compared. Give the flags that the
   recorded server was given (--device, --dtype, --load-format ...); sizes are taken from the recording.
Prints "identical", or where they first part, in words. Exit codes: 0 identical, 1 not, 2 it cannot be replayed.
A recording has the token ids of all requests: it is confidential.

)";

std::vector<Flag> AllFlags() {
  std::vector<Flag> flags(std::begin(kOwnFlags), std::end(kOwnFlags));
  for (const Flag& flag : EngineFlags()) {
    if ((flag.roles & kWorker) != 0 && flag.name != "device") flags.insert(flags.end() - 1, flag);
  }
  return flags;
}

// What a replay came to.
struct Outcome {
  std::optional<std::string> difference;
  std::string counts;              // how far it came: "12 steps, 3 requests, 1 epoch"
  std::vector<std::string> notes;  // what else there is to say
};

std::string Count(uint64_t count, std::string_view noun) {
  return fmt::format("{} {}{}", count, noun, count == 1 ? "" : "s");
}

// Feeds `replay` with all events, up to the first difference. DATA_LOSS and INVALID_ARGUMENT say
// where the recording is bad.
template <typename Replay>
absl::Status Feed(Recording* recording, Replay* replay, Outcome* outcome) {
  TerminalLine line;
  for (uint64_t number = 1; !outcome->difference; ++number) {
    const absl::StatusOr<const record::Event*> next = recording->Next();
    if (!next.ok()) {
      return absl::DataLossError(fmt::format("{}; the {} steps before are identical",
                                             Message(next.status()), replay->num_steps()));
    }
    const record::Event* const event = *next;
    if (event == nullptr) break;
    absl::StatusOr<std::optional<std::string>> difference = replay->Take(*event);
    if (absl::IsInvalidArgument(difference.status())) {
      return InvalidArgument("event {} of the recording: {}", number, Message(difference.status()));
    }
    RETURN_IF_ERROR(difference.status());
    outcome->difference = *std::move(difference);
    if (number % 1024 == 0) line.Show(fmt::format("{} steps", replay->num_steps()));
  }
  outcome->counts =
      fmt::format("{}, {}, {}", Count(replay->num_steps(), "step"),
                  Count(replay->num_requests(), "request"), Count(replay->num_epochs(), "epoch"));
  return absl::OkStatus();
}

absl::StatusOr<Outcome> ReplayPolicy(const CommandLine& line, Recording* recording) {
  InitLogging("penstock");
  Outcome outcome;
  PolicyReplay replay(recording->header(), line.Has("check-invariants"));
  RETURN_IF_ERROR(Feed(recording, &replay, &outcome));
  if (!outcome.difference && !recording->Missing().empty()) replay.ComposeOnce();
  return outcome;
}

// Sizes that were not given, as the ranks had them when the recording's first epoch began.
absl::Status SizesAsRecorded(const std::string& path, CommandLine* line) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Recording> recording, Recording::Open(path));
  while (true) {
    ASSIGN_OR_RETURN(const record::Event* const event, recording->Next());
    if (event == nullptr) {
      return InvalidArgument("recording {} has no steps: its ranks were never ready", path);
    }
    if (!event->has_reset()) continue;
    const record::Reset& reset = event->reset();
    line->values.try_emplace("block-size", std::to_string(reset.page_size()));
    line->values.try_emplace("num-kv-pages", std::to_string(reset.num_pages()));
    line->values.try_emplace("max-model-len", std::to_string(reset.max_model_len()));
    line->values.try_emplace("max-num-batched-tokens",
                             std::to_string(reset.model_max_num_batched_tokens()));
    const record::Header& header = recording->header();
    line->values.try_emplace("tensor-parallel-size", std::to_string(header.num_ranks()));
    line->values.try_emplace("max-num-seqs", std::to_string(header.num_slots()));
    line->values.try_emplace("device", "cpu");
    return absl::OkStatus();
  }
}

absl::StatusOr<Outcome> ReplayWorkers(const std::vector<Flag>& flags, CommandLine line,
                                      const std::string& path, Recording* recording) {
  constexpr int64_t kSecondNs = 1'000'000'000;
  RETURN_IF_ERROR(SizesAsRecorded(path, &line));
  RETURN_IF_ERROR(CompleteEngineFlags(&line));
  ASSIGN_OR_RETURN(const int num_ranks,
                   IntegerFlag(line, "tensor-parallel-size", 1, shm::kMaxRanks));
  ASSIGN_OR_RETURN(const int start_timeout_s, IntegerFlag(line, "start-timeout-s", 1, 86400));
  ASSIGN_OR_RETURN(const int step_timeout_s, IntegerFlag(line, "step-timeout-s", 1, 86400));
  std::string model;
  if (line.Has("model")) {
    ASSIGN_OR_RETURN(model, CheckModel(line.Get("model")));
  } else if (line.Get("device") != "null") {
    return InvalidArgument("--device {} needs the --model that was recorded", line.Get("device"));
  }
  const std::string engine_id = fmt::format("replay-{}", getpid());
  ASSIGN_OR_RETURN(GroupSpec workers, WorkerGroup(flags, line, model, engine_id));
  // First, as it forks; the ranks wait for the segment.
  ASSIGN_OR_RETURN(const std::unique_ptr<EngineProcess> process,
                   EngineProcess::Start({std::move(workers)}, engine_id, "", "penstock replay"));
  InitLogging("penstock");  // the fork has its own
  const auto geometry = WorkerReplay::GeometryFor(recording->header(), num_ranks);
  ASSIGN_OR_RETURN(std::shared_ptr<shm::Segment> segment,
                   shm::Segment::CreateOrAdopt(engine_id, geometry));
  TerminalLine progress;
  WorkerReplay::Options options{.start_timeout_ns = start_timeout_s * kSecondNs,
                                .step_timeout_ns = step_timeout_s * kSecondNs,
                                .on_wait = [&](const std::string& reason) {
                                  progress.Show(reason);
                                  return process->CheckRunning();
                                }};
  WorkerReplay replay(std::move(segment), std::move(options));
  Outcome outcome;
  RETURN_IF_ERROR(Feed(recording, &replay, &outcome));
  progress.Clear();
  if (!outcome.difference) replay.Finish();
  outcome.counts += ", " + Count(replay.num_ids(), "id");
  outcome.notes = replay.losses();
  return outcome;
}

// True: identical.
absl::StatusOr<bool> Run(const std::vector<Flag>& flags, CommandLine line) {
  if (line.positional.size() != 1) {
    return InvalidArgument("give one FILE that --record-plans has written: penstock replay FILE");
  }
  setenv("PENSTOCK_LOG_LEVEL", line.Get("log-level").c_str(), 1);
  const std::string& path = line.positional[0];
  ASSIGN_OR_RETURN(const std::unique_ptr<Recording> recording, Recording::Open(path));
  const bool drives_workers = line.Has("model") || line.Has("device");
  ASSIGN_OR_RETURN(Outcome outcome, drives_workers
                                        ? ReplayWorkers(flags, line, path, recording.get())
                                        : ReplayPolicy(line, recording.get()));
  const std::string& version = recording->header().penstock_version();
  if (version != PENSTOCK_VERSION) {
    outcome.notes.push_back(
        fmt::format("recorded by penstock {}, this is {}", version, PENSTOCK_VERSION));
  }
  if (outcome.difference) {
    fmt::print("different: {}\n", *outcome.difference);
    fmt::print("{} until then\n", outcome.counts);
  } else {
    fmt::print("{}: identical\n", outcome.counts);
    if (std::string missing = recording->Missing(); !missing.empty()) {
      outcome.notes.push_back(missing + ": replayed up to there");
    }
  }
  for (const std::string& note : outcome.notes) fmt::print("note: {}\n", note);
  return !outcome.difference;
}

}  // namespace

int Replay(std::span<char* const> args) {
  const std::vector<Flag> flags = AllFlags();
  const absl::StatusOr<CommandLine> line = Parse(flags, args);
  if (line.ok() && line->Has("help")) {
    fmt::print("{}{}", kHelp, Describe(flags));
    return 0;
  }
  const absl::StatusOr<bool> identical =
      line.ok() ? Run(flags, *line) : absl::StatusOr<bool>(line.status());
  if (identical.ok()) return *identical ? 0 : 1;
  fmt::print(stderr, "penstock replay: {}\n", Message(identical.status()));
  return kExitBadInput;
}

}  // namespace penstock::launcher
