#include "tools/bench/simulate/device_model.h"

#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

namespace penstock::simulate {
namespace {

using Json = nlohmann::json;

struct Decode {
  double batch, ids, ms;  // ids read a step, over the batch, on average
};

std::vector<Decode> ReadDecodes(const Json& report) {
  std::vector<Decode> decodes;
  for (const Json& row : report.at("latency")) {
    const double batch = row.at("batch_size");
    const double length =
        row.at("input_len").get<double>() + row.at("output_len").get<double>() / 2;
    decodes.push_back({batch, batch * length, row.at("tpot_ms")});
  }
  return decodes;
}

// ns an id read, from pairs of the same batch size; `fallback` if there are none.
double FitKvNs(const std::vector<Decode>& decodes, double fallback) {
  double over = 0, under = 0;
  for (const Decode& a : decodes) {
    for (const Decode& b : decodes) {
      if (a.batch != b.batch || a.ids >= b.ids) continue;
      over += (b.ms - a.ms) * (b.ids - a.ids);
      under += (b.ids - a.ids) * (b.ids - a.ids);
    }
  }
  return under > 0 ? std::max(0.0, 1e6 * over / under) : fallback;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.at(values.size() / 2);
}

}  // namespace

absl::StatusOr<DeviceModel> DeviceModel::Load(const std::string& path, double kv_ns) {
  std::ifstream file(path);
  if (!file) return NotFound("cannot read {}: give a report of penstock bench engine", path);
  DeviceModel model;
  try {
    const Json report = Json::parse(file);
    const Json& gpus = report.at("machine").at("gpus");
    model.name_ = gpus.empty() ? report.at("machine").at("cpu") : gpus.at(0);
    const Json& engine = report.at("engine");
    model.num_pages_ = engine.at("num_kv_pages");
    model.page_size_ = engine.at("page_size");
    model.max_model_len_ = engine.at("max_model_len");
    const std::vector<Decode> decodes = ReadDecodes(report);
    model.kv_ns_ = FitKvNs(decodes, kv_ns);
    std::map<double, double> base;
    for (const Decode& row : decodes) base[row.batch] = row.ms - 1e-6 * model.kv_ns_ * row.ids;
    model.decode_ms_.assign(base.begin(), base.end());
    // A straight line through single prompts: what a token costs, and a step without any.
    std::map<double, double> single;
    for (const Json& row : report.at("prefill")) {
      if (row.at("batch_size") == 1) single[row.at("input_len")] = Median(row.at("time_ms"));
    }
    if (single.size() < 2 || base.size() < 2) {
      return InvalidArgument(
          "{} has not two batch sizes and two single prompts: run penstock bench engine with its "
          "own --batch-sizes and --prefill",
          path);
    }
    const auto [short_len, short_ms] = *single.begin();
    const auto [long_len, long_ms] = *single.rbegin();
    model.prefill_us_ = 1e3 * (long_ms - short_ms) / (long_len - short_len);
    model.prefill_ms_ =
        std::max(base.begin()->second, short_ms - 1e-3 * model.prefill_us_ * short_len);
  } catch (const Json::exception& error) {
    return InvalidArgument("{} is no report of penstock bench engine: {}", path, error.what());
  }
  return model;
}

double DeviceModel::StepSeconds(uint32_t num_decodes, uint64_t num_read,
                                uint64_t num_prefill) const {
  double ms = prefill_ms_;
  if (num_decodes > 0) {
    auto right = std::lower_bound(decode_ms_.begin() + 1, decode_ms_.end() - 1,
                                  std::pair<double, double>(num_decodes, 0));
    const auto left = right - 1;
    const double slope = (right->second - left->second) / (right->first - left->first);
    ms = left->second + slope * (num_decodes - left->first);
  }
  return 1e-3 * ms + 1e-9 * kv_ns_ * static_cast<double>(num_read) +
         1e-6 * prefill_us_ * static_cast<double>(num_prefill);
}

}  // namespace penstock::simulate
