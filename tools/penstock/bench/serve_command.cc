// penstock bench serve: a load on a running server, over HTTP or gRPC.

#include <algorithm>
#include <cstdio>
#include <memory>

#include "common/log.h"
#include "tools/penstock/bench/dataset.h"
#include "tools/penstock/bench/grpc_transport.h"
#include "tools/penstock/bench/http_transport.h"
#include "tools/penstock/bench/load.h"
#include "tools/penstock/bench/options.h"
#include "tools/penstock/bench/report.h"
#include "tools/penstock/commands.h"
#include "tools/penstock/engine.h"
#include "tools/penstock/progress.h"

namespace penstock::launcher {
namespace {

using bench::Json;

constexpr int kVocabUnknown = 32000;  // of a server that doesn't say: most models have more

constexpr Flag kFlags[] = {
    {"http", "HOST:PORT", "127.0.0.1:8000", kLauncher, "server of OpenAI's /v1/completions"},
    {"grpc", "HOST:PORT", "", kLauncher, "a Penstock server's gRPC, instead of HTTP"},
    {"model", "NAME", "", kLauncher, "the model to ask for [the server's first]"},
    {"api-key", "KEY", "", kLauncher, "if the server asks for one"},
    {"num-prompts", "A,B,..", "100", kLauncher, "requests of each load"},
    {"max-concurrency", "A,B,..", "none", kLauncher,
     "requests open at once: a load for each number; none: no limit"},
    {"request-rate", "R", "inf", kLauncher,
     "requests a second, a Poisson process; inf: at once, up to the concurrency"},
    {"input-len", "N", "1024", kLauncher, "random ids of a prompt, its prefix aside"},
    {"output-len", "N", "128", kLauncher, "ids asked for"},
    {"range-ratio", "R", "0", kLauncher,
     "draw both lengths evenly from (1 - R) to (1 + R) times the above"},
    {"prefix-len", "N", "0", kLauncher, "ids before each prompt that it shares with others"},
    {"num-prefixes", "N", "1", kLauncher, "how many different prefixes there are"},
    {"ignore-eos", "true|false", "true", kLauncher,
     "true: every answer has its full length; false: a model may end earlier"},
    {"temperature", "T", "0", kLauncher, "0: greedy"},
    {"vocab-size", "N", "", kLauncher,
     "random ids are below it [over gRPC the model's, else 32000]"},
    {"seed", "N", "0", kLauncher, "of the random data and of the arrivals"},
    {"json", "FILE", "", kLauncher, "write the figures there; -: to standard output, nothing else"},
    {"help", "", "", kLauncher, "this"},
};

constexpr std::string_view kHelp = R"(usage: penstock bench serve [flags]

Loads a running server with random token ids, streamed, and shows requests per second, tokens per second, TTFT (time
to first token), TPOT (time per output token after it), ITL (between what arrives one after the other) and E2E. The
method is that of `vllm bench serve` with its random dataset. For example, with a server on this machine:

  penstock bench serve --max-concurrency 1,16,100 --num-prompts 20,160,500 --input-len 1024 --output-len 128
  penstock bench serve --grpc 127.0.0.1:50051 --request-rate 10

)";

struct Options {
  bench::ServerOptions server;
  bool grpc = false;
  std::vector<bench::LoadShape> loads;
  double request_rate = 0;
  bench::DatasetOptions dataset;
};

absl::StatusOr<Options> ParseOptions(const CommandLine& line) {
  constexpr int kMax = 1 << 24;
  Options options;
  if (!line.positional.empty()) {
    return InvalidArgument("unexpected \"{}\": the server is given by --http or --grpc",
                           line.positional[0]);
  }
  options.grpc = line.Has("grpc");
  options.server.address = line.Get(options.grpc ? "grpc" : "http");
  if (options.server.address.starts_with("http://")) options.server.address.erase(0, 7);
  if (options.server.address.find('/') != std::string::npos) {
    return InvalidArgument("--http {}: give HOST:PORT alone; https is not supported",
                           line.Get("http"));
  }
  options.server.model = line.Get("model");
  options.server.api_key = line.Get("api-key");
  const std::string ignore_eos = line.Get("ignore-eos");
  if (ignore_eos != "true" && ignore_eos != "false") {
    return InvalidArgument("--ignore-eos {} must be true or false", ignore_eos);
  }
  options.server.ignore_eos = ignore_eos == "true";
  ASSIGN_OR_RETURN(options.server.temperature, bench::Number(line, "temperature", 0, 100));
  ASSIGN_OR_RETURN(options.loads, bench::LoadShapes(line, "max-concurrency", "num-prompts"));
  ASSIGN_OR_RETURN(options.request_rate, bench::Rate(line, "request-rate"));
  bench::DatasetOptions& dataset = options.dataset;
  ASSIGN_OR_RETURN(dataset.input_len, IntegerFlag(line, "input-len", 1, kMax));
  ASSIGN_OR_RETURN(dataset.output_len, IntegerFlag(line, "output-len", 1, kMax));
  ASSIGN_OR_RETURN(dataset.range_ratio, bench::Number(line, "range-ratio", 0, 1));
  ASSIGN_OR_RETURN(dataset.prefix_len, IntegerFlag(line, "prefix-len", 0, kMax));
  ASSIGN_OR_RETURN(dataset.num_prefixes, IntegerFlag(line, "num-prefixes", 1, kMax));
  ASSIGN_OR_RETURN(dataset.seed, IntegerFlag(line, "seed", 0, INT32_MAX));
  if (line.Has("vocab-size")) {
    ASSIGN_OR_RETURN(dataset.vocab_size, IntegerFlag(line, "vocab-size", 1, kMax));
  }
  return options;
}

// Connects, and asks the server for its model.
absl::StatusOr<std::unique_ptr<bench::Transport>> Connect(const Options& options,
                                                          bench::ServerModel* model) {
  if (options.grpc) {
    ASSIGN_OR_RETURN(auto transport, bench::GrpcTransport::Connect(options.server));
    *model = transport->model();
    return transport;
  }
  ASSIGN_OR_RETURN(auto transport, bench::HttpTransport::Connect(options.server));
  *model = transport->model();
  return transport;
}

// One request, whose failure would be every other's too.
absl::Status TryOne(bench::Transport& transport, bench::DatasetOptions dataset) {
  dataset.num_prompts = 1;
  dataset.seed += 1'000'000'007;
  ASSIGN_OR_RETURN(const bench::LoadResult result,
                   bench::RunLoad(transport, bench::MakePrompts(dataset), {.arrivals = {0.0}}));
  const absl::Status& status = result.requests[0].status;
  if (status.ok()) return absl::OkStatus();
  return absl::Status(status.code(), "the server failed a first request: " + Message(status));
}

absl::StatusOr<bench::LoadFigures> RunOne(bench::Transport& transport, const Options& options,
                                          const bench::LoadShape& shape,
                                          const bench::DatasetOptions& dataset) {
  RETURN_IF_ERROR(TryOne(transport, dataset));
  const std::vector<bench::Prompt> prompts = bench::MakePrompts(dataset);
  Progress bar("requests", prompts.size());
  ASSIGN_OR_RETURN(const bench::LoadResult result,
                   bench::RunLoad(transport, prompts,
                                  {.arrivals = bench::ArrivalTimes(
                                       dataset.num_prompts, options.request_rate, dataset.seed),
                                   .max_concurrency = shape.max_concurrency,
                                   .progress = [&bar](size_t done, int64_t, double seconds) {
                                     bar.Show(done, fmt::format("{:.1f} s", seconds));
                                   }}));
  return bench::Figures(result);
}

absl::StatusOr<size_t> Run(const CommandLine& line) {
  ASSIGN_OR_RETURN(Options options, ParseOptions(line));
  Json report = bench::ReportHead("serve");
  bench::ServerModel model;
  ASSIGN_OR_RETURN(const std::unique_ptr<bench::Transport> transport, Connect(options, &model));
  if (options.dataset.vocab_size == 0) {
    options.dataset.vocab_size = model.vocab_size > 0 ? model.vocab_size : kVocabUnknown;
  }
  report["server"] = {{"address", options.server.address},
                      {"api", options.grpc ? "grpc" : "http"},
                      {"model", model.name},
                      {"version", model.version},
                      {"max_model_len", model.max_model_len}};
  report["flags"] = line.values;
  report["flags"].erase("api-key");
  report["load"] = Json::array();
  const bool quiet = line.Get("json") == "-";
  size_t failed = 0;
  for (const bench::LoadShape& shape : options.loads) {
    options.dataset.num_prompts = shape.num_prompts;
    ++options.dataset.seed;  // no load finds the one before it in a cache
    ASSIGN_OR_RETURN(const bench::LoadFigures figures,
                     RunOne(*transport, options, shape, options.dataset));
    failed += figures.failed;
    const std::string clients =
        shape.max_concurrency == 0 ? "no limit" : fmt::format("{}", shape.max_concurrency);
    if (!quiet) {
      fmt::print("Concurrency {}, {} requests/s, {} in, {} out\n{}\n", clients,
                 line.Get("request-rate"), options.dataset.prefix_len + options.dataset.input_len,
                 options.dataset.output_len, Describe(figures));
      std::fflush(stdout);
    }
    Json row = {
        {"max_concurrency", shape.max_concurrency}, {"num_prompts", shape.num_prompts},
        {"request_rate", line.Get("request-rate")}, {"input_len", options.dataset.input_len},
        {"prefix_len", options.dataset.prefix_len}, {"output_len", options.dataset.output_len}};
    row.update(ToJson(figures));
    report["load"].push_back(std::move(row));
  }
  if (line.Has("json")) RETURN_IF_ERROR(bench::WriteReport(report, line.Get("json")));
  return failed;
}

}  // namespace

int BenchServe(std::span<char* const> args) {
  const absl::StatusOr<CommandLine> line = Parse(kFlags, args);
  if (line.ok() && line->Has("help")) {
    fmt::print("{}{}", kHelp, Describe(kFlags));
    return 0;
  }
  const absl::StatusOr<size_t> failed =
      line.ok() ? Run(*line) : absl::StatusOr<size_t>(line.status());
  if (failed.ok()) return *failed == 0 ? 0 : 1;
  fmt::print(stderr, "penstock bench serve: {}\n", Message(failed.status()));
  return absl::IsInvalidArgument(failed.status()) ? 2 : 1;
}

}  // namespace penstock::launcher
