#include "tools/penstock/bench/bench_engine.h"

#include <cstdio>

#include "tools/penstock/progress.h"

namespace penstock::bench {
namespace {

double BatchMs(const LoadResult& result) { return 1e3 * result.duration_s; }

// The time between a request's outputs, once all of the batch decode: the step as a client sees it.
double SteadyItlMs(const LoadResult& result) {
  double all_decode_ms = 0;
  for (const RequestRecord& record : result.requests) {
    all_decode_ms = std::max(all_decode_ms, record.sent_ms + record.ttft_ms);
  }
  std::vector<double> gaps;
  for (const RequestRecord& record : result.requests) {
    double at = record.sent_ms + record.ttft_ms;
    for (const double gap : record.gaps_ms) {
      if (at >= all_decode_ms) gaps.push_back(gap);
      at += gap;
    }
  }
  return Median(std::move(gaps));
}

std::string Cell(double value, int decimals) { return fmt::format("{:.{}f}", value, decimals); }

}  // namespace

void EngineBench::Print(const std::string& text) const {
  if (quiet_) return;
  fmt::print("{}", text);
  std::fflush(stdout);
}

std::vector<Prompt> EngineBench::Prompts(int count, int input_len, int output_len) {
  return MakePrompts({.num_prompts = count,
                      .input_len = input_len,
                      .output_len = output_len,
                      .vocab_size = static_cast<int>(transport_.status().vocab_size()),
                      .seed = options_.seed + 1'000'003 * num_datasets_++});
}

std::string EngineBench::WhyNotAtOnce(int batch_size, int input_len, int output_len) const {
  const wire::Status& status = transport_.status();
  const int length = input_len + output_len;
  if (length > static_cast<int>(status.max_model_len())) {
    return fmt::format("{} tokens are more than the model's {}: see --max-model-len", length,
                       status.max_model_len());
  }
  if (options_.max_num_seqs > 0 && batch_size > options_.max_num_seqs) {
    return fmt::format("--max-num-seqs is {}: raise it to {}", options_.max_num_seqs, batch_size);
  }
  const auto page = static_cast<int64_t>(std::max(1u, status.page_size()));
  const int64_t pages = batch_size * ((length + page - 1) / page);
  if (pages > status.num_pages()) {
    return fmt::format("it takes {} KV pages of {}: give the KV cache more memory", pages,
                       status.num_pages());
  }
  return "";
}

absl::StatusOr<LoadResult> EngineBench::RunPrompts(const std::vector<Prompt>& prompts,
                                                   const std::vector<double>& arrivals,
                                                   int max_concurrency, const std::string& title) {
  launcher::Progress bar(title, prompts.size());
  const LoadOptions load{.arrivals = arrivals,
                         .max_concurrency = max_concurrency,
                         .progress = [&bar](size_t done, int64_t tokens, double seconds) {
                           bar.Show(done, fmt::format("{} tokens, {:.1f} s", tokens, seconds));
                         }};
  return RunLoad(transport_, prompts, load);
}

absl::StatusOr<LoadResult> EngineBench::RunBatch(int batch_size, int input_len, int output_len) {
  const std::vector<Prompt> prompts = Prompts(batch_size, input_len, output_len);
  const std::vector<double> at_once(prompts.size(), 0.0);
  const std::string title = fmt::format("{} x {} in, {} out", batch_size, input_len, output_len);
  ASSIGN_OR_RETURN(LoadResult result, RunPrompts(prompts, at_once, 0, title));
  for (const RequestRecord& record : result.requests) {
    RETURN_IF_ERROR(record.status);
    if (record.output_tokens != output_len) {
      return Internal("asked for {} tokens, got {}", output_len, record.output_tokens);
    }
  }
  return result;
}

absl::Status EngineBench::RunLatency(Json* report) {
  const int in = options_.input_len, out = options_.output_len;
  std::vector<std::vector<std::string>> table = {
      {"batch", "TPOT ms", "time(1) ms", fmt::format("time({}) ms", out), "step P50 ms", "tok/s"}};
  Json rows = Json::array();
  for (const int batch_size : options_.batch_sizes) {
    Json row = {{"batch_size", batch_size}, {"input_len", in}, {"output_len", out}};
    if (const std::string reason = WhyNotAtOnce(batch_size, in, out); !reason.empty()) {
      Print(fmt::format("batch {} left out: {}\n", batch_size, reason));
      row["skipped"] = reason;
      rows.push_back(std::move(row));
      continue;
    }
    std::vector<double> time_1, time_n, step;
    RETURN_IF_ERROR(RunBatch(batch_size, in, std::min(out, 8)).status());  // warm-up
    for (int i = 0; i < options_.repeat; ++i) {
      ASSIGN_OR_RETURN(const LoadResult first, RunBatch(batch_size, in, 1));
      ASSIGN_OR_RETURN(const LoadResult whole, RunBatch(batch_size, in, out));
      time_1.push_back(BatchMs(first));
      time_n.push_back(BatchMs(whole));
      step.push_back(SteadyItlMs(whole));
    }
    const double tpot_ms = (Median(time_n) - Median(time_1)) / (out - 1);
    const double tokens_per_s = 1e3 * batch_size * out / Median(time_n);
    table.push_back({fmt::format("{}", batch_size), Cell(tpot_ms, 3), Cell(Median(time_1), 2),
                     Cell(Median(time_n), 2), Cell(Median(step), 3), Cell(tokens_per_s, 0)});
    row["tpot_ms"] = tpot_ms;
    row["time_1_ms"] = time_1;
    row["time_n_ms"] = time_n;
    row["step_p50_ms"] = step;
    row["output_tokens_per_s"] = tokens_per_s;
    rows.push_back(std::move(row));
  }
  (*report)["latency"] = std::move(rows);
  if (table.size() == 1) return absl::OkStatus();
  Print(fmt::format("\nDecode, prompt {}, {} out: TPOT = (time({}) - time(1)) / {}\n{}", in, out,
                    out, out - 1, Table(table)));
  return absl::OkStatus();
}

absl::Status EngineBench::RunPrefill(Json* report) {
  std::vector<std::vector<std::string>> table = {{"prompts", "ms", "tok/s"}};
  Json rows = Json::array();
  for (const auto& [batch_size, input_len] : options_.prefills) {
    const std::string name = fmt::format("{} x {}", batch_size, input_len);
    Json row = {{"batch_size", batch_size}, {"input_len", input_len}};
    if (const std::string reason = WhyNotAtOnce(batch_size, input_len, 1); !reason.empty()) {
      Print(fmt::format("prefill {} left out: {}\n", name, reason));
      row["skipped"] = reason;
      rows.push_back(std::move(row));
      continue;
    }
    std::vector<double> times;
    for (int i = 0; i <= options_.repeat; ++i) {
      ASSIGN_OR_RETURN(const LoadResult result, RunBatch(batch_size, input_len, 1));
      if (i > 0) times.push_back(BatchMs(result));  // the first warms up
    }
    const double tokens_per_s = 1e3 * batch_size * input_len / Median(times);
    table.push_back({name, Cell(Median(times), 2), Cell(tokens_per_s, 0)});
    row["time_ms"] = times;
    row["tokens_per_s"] = tokens_per_s;
    rows.push_back(std::move(row));
  }
  (*report)["prefill"] = std::move(rows);
  if (table.size() == 1) return absl::OkStatus();
  Print("\nPrefill, until the first token of every prompt\n" + Table(table));
  return absl::OkStatus();
}

absl::Status EngineBench::RunLoads(Json* report) {
  const int in = options_.load_input_len, out = options_.load_output_len;
  Json rows = Json::array();
  for (const auto& [max_concurrency, num_prompts] : options_.loads) {
    RETURN_IF_ERROR(RunBatch(1, in, std::min(out, 8)).status());  // warm-up
    const std::vector<Prompt> prompts = Prompts(num_prompts, in, out);
    const std::vector<double> arrivals =
        ArrivalTimes(num_prompts, options_.request_rate, options_.seed);
    const std::string title = fmt::format("{} clients", max_concurrency);
    ASSIGN_OR_RETURN(const LoadResult result,
                     RunPrompts(prompts, arrivals, max_concurrency, title));
    RETURN_IF_ERROR(transport_.RefreshStatus());
    const LoadFigures figures = Figures(result);
    const double idle_ratio = transport_.status().device_idle_ratio();
    Print(fmt::format("\nLoad, {} clients, {} in, {} out\n{}  device idle ratio {:.4f}\n",
                      max_concurrency, in, out, Describe(figures), idle_ratio));
    Json row = {{"max_concurrency", max_concurrency},
                {"num_prompts", num_prompts},
                {"input_len", in},
                {"output_len", out},
                {"device_idle_ratio", idle_ratio},
                {"num_preemptions", transport_.status().num_preemptions()}};
    row.update(ToJson(figures));
    rows.push_back(std::move(row));
  }
  (*report)["load"] = std::move(rows);
  return absl::OkStatus();
}

absl::Status EngineBench::Run(Json* report) {
  RETURN_IF_ERROR(transport_.RefreshStatus());
  const wire::Status& status = transport_.status();
  (*report)["engine"] = {{"max_model_len", status.max_model_len()},
                         {"vocab_size", status.vocab_size()},
                         {"num_kv_pages", status.num_pages()},
                         {"page_size", status.page_size()}};
  if (!options_.batch_sizes.empty()) RETURN_IF_ERROR(RunLatency(report));
  if (!options_.prefills.empty()) RETURN_IF_ERROR(RunPrefill(report));
  if (!options_.loads.empty()) RETURN_IF_ERROR(RunLoads(report));
  return absl::OkStatus();
}

}  // namespace penstock::bench
