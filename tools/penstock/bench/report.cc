#include "tools/penstock/bench/report.h"

#include <sys/utsname.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

namespace penstock::bench {
namespace {

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// The text behind "key" and a colon in the first line of `text` that begins with it.
std::string Field(const std::string& text, const std::string& key) {
  const size_t at = text.find(key);
  if (at == std::string::npos) return "";
  const size_t end = std::min(text.find('\n', at), text.size());
  const size_t colon = text.find(':', at);
  if (colon >= end) return "";
  const size_t begin = text.find_first_not_of(" \t", colon + 1);
  return begin < end ? text.substr(begin, end - begin) : "";
}

std::string FirstLine(const std::string& text) { return text.substr(0, text.find('\n')); }

// From what the driver says in /proc: no GPU library is needed for that.
Json Gpus() {
  Json gpus = Json::array();
  std::error_code none;
  for (const auto& gpu : std::filesystem::directory_iterator("/proc/driver/nvidia/gpus", none)) {
    gpus.push_back(Field(ReadFile(gpu.path() / "information"), "Model"));
  }
  return gpus;
}

Json Machine() {
  utsname kernel = {};
  uname(&kernel);
  double load[1] = {0};
  getloadavg(load, 1);
  return {{"cpu", Field(ReadFile("/proc/cpuinfo"), "model name")},
          {"cores", std::thread::hardware_concurrency()},
          {"gpus", Gpus()},
          {"gpu_driver", FirstLine(ReadFile("/proc/driver/nvidia/version"))},
          {"kernel", kernel.release},
          {"host", kernel.nodename},
          {"load_average_before", load[0]}};
}

// A bundle (tools/package) says in ../VERSION what it was built from.
std::string Build() {
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  return error ? "" : FirstLine(ReadFile(self.parent_path().parent_path() / "VERSION"));
}

std::string Row(const char* name, const Summary& summary) {
  return fmt::format("  {:<10} {:>10.2f} {:>10.2f} {:>10.2f} {:>10.2f}\n", name, summary.mean,
                     summary.p50, summary.p95, summary.p99);
}

}  // namespace

Json ReportHead(const std::string& benchmark) {
  const std::time_t now = std::time(nullptr);
  char time[32];
  std::strftime(time, sizeof(time), "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
  return {{"benchmark", benchmark},
          {"time", time},
          {"machine", Machine()},
          {"versions",
           {{"penstock", PENSTOCK_VERSION}, {"build", Build()}, {"compiler", __VERSION__}}}};
}

Json ToJson(const Summary& summary) {
  if (summary.count == 0) return nullptr;
  return {{"count", summary.count}, {"mean", summary.mean}, {"min", summary.min},
          {"p50", summary.p50},     {"p95", summary.p95},   {"p99", summary.p99},
          {"max", summary.max}};
}

Json ToJson(const LoadFigures& figures) {
  Json json = {{"completed", figures.completed},
               {"failed", figures.failed},
               {"duration_s", figures.duration_s},
               {"input_tokens", figures.input_tokens},
               {"output_tokens", figures.output_tokens},
               {"requests_per_s", figures.requests_per_s},
               {"output_tokens_per_s", figures.output_tokens_per_s},
               {"total_tokens_per_s", figures.total_tokens_per_s},
               {"ttft_ms", ToJson(figures.ttft_ms)},
               {"tpot_ms", ToJson(figures.tpot_ms)},
               {"itl_ms", ToJson(figures.itl_ms)},
               {"e2e_ms", ToJson(figures.e2e_ms)},
               {"max_open_requests", figures.max_open},
               {"client_cpu_share", figures.client_cpu_share}};
  if (figures.failed > 0) json["first_error"] = figures.first_error;
  return json;
}

std::string Describe(const LoadFigures& figures) {
  std::string text = fmt::format(
      "  {} requests in {:.2f} s, {} failed: {:.2f} req/s, {:.0f} output tok/s, {:.0f} tok/s with "
      "prompts\n",
      figures.completed, figures.duration_s, figures.failed, figures.requests_per_s,
      figures.output_tokens_per_s, figures.total_tokens_per_s);
  if (figures.failed > 0) text += fmt::format("  first error: {}\n", figures.first_error);
  if (figures.completed == 0) return text;
  text += fmt::format("  {:<10} {:>10} {:>10} {:>10} {:>10}\n", "ms", "mean", "P50", "P95", "P99");
  text += Row("TTFT", figures.ttft_ms);
  if (figures.tpot_ms.count > 0) text += Row("TPOT", figures.tpot_ms);
  if (figures.itl_ms.count > 0) text += Row("ITL", figures.itl_ms);
  text += Row("E2E", figures.e2e_ms);
  return text +
         fmt::format("  the client took {:.0f}% of one core\n", 100 * figures.client_cpu_share);
}

std::string Table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) text += fmt::format("  {:>{}}", row[i], widths[i]);
    text += '\n';
  }
  return text;
}

absl::Status WriteReport(const Json& report, const std::string& path) {
  const std::string text = report.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
  if (path == "-") {
    fmt::print("{}", text);
    return absl::OkStatus();
  }
  std::ofstream file(path);
  file << text;
  file.close();
  if (!file) return absl::ErrnoToStatus(errno, "cannot write " + path);
  return absl::OkStatus();
}

}  // namespace penstock::bench
