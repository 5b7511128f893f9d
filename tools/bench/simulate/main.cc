// penstock-simulate: the scheduler's policies against each other on a simulated device. What it
// prints: tools/bench/README.md.
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/flags/flag.h"
#include "absl/strings/str_split.h"
#include "common/flags.h"
#include "common/log.h"
#include "common/status.h"
#include "tools/bench/simulate/chart.h"
#include "tools/bench/simulate/run.h"

ABSL_FLAG(std::string, device, "", "JSON that penstock bench engine wrote on the device");
ABSL_FLAG(
    double, kv_ns, 30.5,
    "nanoseconds to read an id's KV, if the file has it not: 131 kB (Llama 3 8B) at 4.3 TB/s");
ABSL_FLAG(uint32_t, num_kv_pages, 0, "KV pages; 0: as many as the device had");
ABSL_FLAG(uint32_t, max_num_seqs, 1024, "requests that run at once");
ABSL_FLAG(uint32_t, max_num_batched_tokens, 2048, "tokens of a step");
ABSL_FLAG(double, target_itl_ms, 0,
          "tune the tokens of a step so that tokens of a request come at most so far apart; 0: no");
ABSL_FLAG(double, step_noise, 0, "spread of steps about the device's model, as a share");
ABSL_FLAG(uint32_t, max_queued_requests, 4096, "requests that may wait; more are refused");
ABSL_FLAG(bool, enable_prefix_caching, true, "requests share the pages of equal beginnings");
ABSL_FLAG(std::string, traces, "all", "names, with commas");
ABSL_FLAG(std::string, policies, "all", "names, with commas");
ABSL_FLAG(std::string, loads, "0.5,0.7,0.8,0.9,1,1.1",
          "rates of arrival, as shares of the rate at which the last policy is saturated");
ABSL_FLAG(uint64_t, num_requests, 20000, "of each run");
ABSL_FLAG(uint64_t, seed, 1, "of the requests");
ABSL_FLAG(double, slo_ttft_ms, 2000, "objective: time to the first token");
ABSL_FLAG(double, slo_tpot_ms, 100, "objective: time per further token, mean of a request");
ABSL_FLAG(std::string, json, "", "write the figures there");
ABSL_FLAG(std::string, svg, "", "draw them there");

namespace penstock::simulate {
namespace {

using Json = nlohmann::ordered_json;

// Those of `all` that a flag names, in its order.
template <typename Spec>
absl::StatusOr<std::vector<const Spec*>> Named(std::span<const Spec> all, const std::string& names,
                                               const char* flag) {
  std::vector<const Spec*> chosen;
  if (names == "all") {
    for (const Spec& spec : all) chosen.push_back(&spec);
    return chosen;
  }
  for (const std::string& name : std::vector<std::string>(absl::StrSplit(names, ','))) {
    const auto found =
        std::find_if(all.begin(), all.end(), [&](const Spec& spec) { return spec.name == name; });
    if (found == all.end()) {
      std::string known;
      for (const Spec& spec : all) known += fmt::format("\n  {}: {}", spec.name, spec.about);
      return InvalidArgument("--{} has no \"{}\"; there are{}", flag, name, known);
    }
    chosen.push_back(&*found);
  }
  return chosen;
}

absl::StatusOr<std::vector<double>> Loads() {
  std::vector<double> loads;
  for (const std::string& text :
       std::vector<std::string>(absl::StrSplit(absl::GetFlag(FLAGS_loads), ','))) {
    char* end = nullptr;
    loads.push_back(std::strtod(text.c_str(), &end));
    if (text.empty() || *end != '\0' || !(loads.back() > 0)) {
      return InvalidArgument("--loads has \"{}\": give positive numbers with commas", text);
    }
  }
  return loads;
}

Json ToJson(const bench::Summary& summary) {
  return {{"mean", summary.mean},
          {"p50", summary.p50},
          {"p95", summary.p95},
          {"p99", summary.p99},
          {"max", summary.max}};
}

Json ToJson(const LogHistogram& values) {
  return {{"p50", values.Percentile(50)},
          {"p95", values.Percentile(95)},
          {"p99", values.Percentile(99)}};
}

Json ToJson(const RunSpec& spec, double load, const RunFigures& figures) {
  return {{"trace", spec.trace->name},
          {"policy", spec.policy->name},
          {"load", load},
          {"request_rate", spec.rate},
          {"requests_per_s", figures.requests_per_s},
          {"goodput", figures.goodput},
          {"good_share", figures.good_share},
          {"ttft_s", ToJson(figures.ttft_s)},
          {"tpot_s", ToJson(figures.tpot_s)},
          {"itl_s", ToJson(figures.itl_s)},
          {"kv_use", figures.page_use},
          {"running", figures.mean_running},
          {"cached_share", figures.cached_share},
          {"preempted_share", figures.preempted_share},
          {"preemptions", figures.num_preemptions},
          {"refused", figures.num_refused},
          {"steps", figures.num_steps},
          {"simulated_s", figures.simulated_s},
          {"wall_s", figures.wall_s}};
}

void PrintHead(const TraceSpec& trace) {
  std::printf("\n%s: %s\n%5s  %-10s %7s %7s %6s  %23s  %20s  %20s  %6s %6s %5s %9s %8s %7s\n",
              trace.name.c_str(), trace.about.c_str(), "load", "policy", "req/s", "goodput", "good",
              "TTFT P50/P95/P99 s", "TPOT P50/P95/P99 ms", "ITL P50/P95/P99 ms", "cached", "KV use",
              "runs", "preempted", "steps", "wall s");
}

void Print(const RunSpec& spec, double load, const RunFigures& f) {
  const std::string ttft =
      fmt::format("{:.3f} / {:.3f} / {:.3f}", f.ttft_s.p50, f.ttft_s.p95, f.ttft_s.p99);
  const std::string tpot = fmt::format("{:.1f} / {:.1f} / {:.1f}", 1e3 * f.tpot_s.p50,
                                       1e3 * f.tpot_s.p95, 1e3 * f.tpot_s.p99);
  const std::string itl = fmt::format("{:.1f} / {:.1f} / {:.1f}", 1e3 * f.itl_s.Percentile(50),
                                      1e3 * f.itl_s.Percentile(95), 1e3 * f.itl_s.Percentile(99));
  std::printf(
      "%5s  %-10s %7.2f %7.2f %5.1f%%  %23s  %20s  %20s  %5.1f%% %5.1f%% %5.0f %8.2f%% %8lu "
      "%7.1f\n",
      load == 0 ? "full" : fmt::format("{:g}", load).c_str(), spec.policy->name.c_str(),
      f.requests_per_s, f.goodput, 100 * f.good_share, ttft.c_str(), tpot.c_str(), itl.c_str(),
      100 * f.cached_share, 100 * f.page_use, f.mean_running, 100 * f.preempted_share, f.num_steps,
      f.wall_s);
  std::fflush(stdout);
}

struct Result {
  double load;
  size_t policy;
  RunFigures figures;
};

std::vector<Panel> Panels(const TraceSpec& trace, size_t num_policies,
                          const std::vector<Result>& results) {
  std::vector<Panel> panels = {{trace.name + ": goodput, requests/s", "load"},
                               {trace.name + ": P95 TTFT, s", "load", true},
                               {trace.name + ": KV memory in use, %", "load"},
                               {trace.name + ": requests preempted, %", "load"}};
  for (Panel& panel : panels) panel.lines.resize(num_policies);
  for (const Result& result : results) {
    if (result.load == 0) continue;
    const RunFigures& f = result.figures;
    const double values[] = {f.goodput, f.ttft_s.p95, 100 * f.page_use, 100 * f.preempted_share};
    for (size_t i = 0; i < panels.size(); ++i) {
      panels[i].lines[result.policy].emplace_back(result.load, values[i]);
    }
  }
  return panels;
}

absl::Status WriteFile(const std::string& path, const std::string& text) {
  if (path.empty()) return absl::OkStatus();
  std::ofstream file(path);
  file << text;
  file.close();
  return file ? absl::OkStatus() : Unavailable("cannot write {}", path);
}

absl::Status Main() {
  ASSIGN_OR_RETURN(const DeviceModel device,
                   DeviceModel::Load(absl::GetFlag(FLAGS_device), absl::GetFlag(FLAGS_kv_ns)));
  ASSIGN_OR_RETURN(const auto traces, Named(Traces(), absl::GetFlag(FLAGS_traces), "traces"));
  ASSIGN_OR_RETURN(const auto policies,
                   Named(Policies(), absl::GetFlag(FLAGS_policies), "policies"));
  ASSIGN_OR_RETURN(const std::vector<double> loads, Loads());
  EngineConfig config;
  config.num_pages = absl::GetFlag(FLAGS_num_kv_pages);
  if (config.num_pages == 0) config.num_pages = device.num_pages();
  config.max_num_seqs = absl::GetFlag(FLAGS_max_num_seqs);
  config.max_num_batched_tokens = absl::GetFlag(FLAGS_max_num_batched_tokens);
  config.target_itl_s = 1e-3 * absl::GetFlag(FLAGS_target_itl_ms);
  config.step_noise = absl::GetFlag(FLAGS_step_noise);
  config.max_queued_requests = absl::GetFlag(FLAGS_max_queued_requests);
  config.share_prefixes = absl::GetFlag(FLAGS_enable_prefix_caching);
  if (absl::GetFlag(FLAGS_num_requests) < 100 || config.max_num_seqs == 0 ||
      config.max_num_batched_tokens < config.max_num_seqs || config.max_queued_requests < 100) {
    return InvalidArgument(
        "--num-requests and --max-queued-requests must be at least 100, --max-num-batched-tokens "
        "at least --max-num-seqs");
  }
  if (!(config.target_itl_s >= 0) || !(config.step_noise >= 0)) {
    return InvalidArgument("--target-itl-ms and --step-noise must not be negative");
  }
  std::printf(
      "%s: decode of 1 and %u: %.2f and %.2f ms, of 1000 ids read %.2f us, of a prompt id "
      "%.1f us; %u pages of %u\n",
      device.name().c_str(), config.max_num_seqs, 1e3 * device.StepSeconds(1, 0, 0),
      1e3 * device.StepSeconds(config.max_num_seqs, 0, 0), device.kv_ns(), device.prefill_us(),
      config.num_pages, device.page_size());

  Json report = {{"benchmark", "simulate"},
                 {"device", absl::GetFlag(FLAGS_device)},
                 {"num_kv_pages", config.num_pages},
                 {"max_num_seqs", config.max_num_seqs},
                 {"max_num_batched_tokens", config.max_num_batched_tokens},
                 {"target_itl_s", config.target_itl_s},
                 {"step_noise", config.step_noise},
                 {"max_queued_requests", config.max_queued_requests},
                 {"enable_prefix_caching", config.share_prefixes},
                 {"kv_ns", device.kv_ns()},
                 {"num_requests", absl::GetFlag(FLAGS_num_requests)},
                 {"seed", absl::GetFlag(FLAGS_seed)},
                 {"slo_ttft_ms", absl::GetFlag(FLAGS_slo_ttft_ms)},
                 {"slo_tpot_ms", absl::GetFlag(FLAGS_slo_tpot_ms)},
                 {"runs", Json::array()}};
  std::vector<std::vector<Panel>> charts;
  for (const TraceSpec* trace : traces) {
    PrintHead(*trace);
    std::vector<Result> results;
    double full_rate = 0;  // at which the last policy is saturated
    auto run = [&](size_t policy, double load) {
      const RunSpec spec = {trace,
                            policies[policy],
                            absl::GetFlag(FLAGS_num_requests),
                            absl::GetFlag(FLAGS_seed),
                            load * full_rate,
                            1e-3 * absl::GetFlag(FLAGS_slo_ttft_ms),
                            1e-3 * absl::GetFlag(FLAGS_slo_tpot_ms)};
      results.push_back({load, policy, Simulate(device, config, spec)});
      Print(spec, load, results.back().figures);
      report["runs"].push_back(ToJson(spec, load, results.back().figures));
    };
    for (size_t policy = 0; policy < policies.size(); ++policy) run(policy, 0);
    full_rate = results.back().figures.requests_per_s;
    for (double load : loads) {
      for (size_t policy = 0; policy < policies.size(); ++policy) run(policy, load);
    }
    charts.push_back(Panels(*trace, policies.size(), results));
  }
  RETURN_IF_ERROR(WriteFile(absl::GetFlag(FLAGS_json), report.dump(1) + "\n"));
  std::vector<std::string> names;
  names.reserve(policies.size());
  for (const PolicySpec* policy : policies) {
    names.push_back(fmt::format("{} ({})", policy->name, policy->about));
  }
  return WriteFile(
      absl::GetFlag(FLAGS_svg),
      DrawCharts(fmt::format("Admission on a simulated {}: {} pages, SLO TTFT {} ms "
                             "and TPOT {} ms; load 1 saturates {}",
                             device.name(), config.num_pages, absl::GetFlag(FLAGS_slo_ttft_ms),
                             absl::GetFlag(FLAGS_slo_tpot_ms), policies.back()->name),
                 names, charts));
}

}  // namespace
}  // namespace penstock::simulate

int main(int argc, char** argv) {
  const std::vector<char*> rest = penstock::ParseFlags(
      "compares the scheduler's admission policies on a simulated device", argc, argv);
  penstock::InitLogging("simulate");
  absl::Status status = rest.size() > 1
                            ? penstock::InvalidArgument("unexpected argument \"{}\"", rest[1])
                            : penstock::simulate::Main();
  if (status.ok()) return 0;
  std::fprintf(stderr, "penstock-simulate: %s\n", penstock::Message(status).c_str());
  return 1;
}
