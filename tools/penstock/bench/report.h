// What a benchmark prints and writes: tables for people, JSON with the machine and the versions.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/status.h"
#include "tools/penstock/bench/load.h"

namespace penstock::bench {

using Json = nlohmann::ordered_json;

// The head of every report: benchmark, time (UTC), machine (processor, cores, GPUs and their
// driver, kernel, load average), versions (Penstock, its build, compiler).
Json ReportHead(const std::string& benchmark);

Json ToJson(const Summary& summary);
Json ToJson(const LoadFigures& figures);

// The figures of one load, in lines.
std::string Describe(const LoadFigures& figures);

// A table with right-aligned columns as wide as their widest cell.
std::string Table(const std::vector<std::vector<std::string>>& rows);

// Writes `report` to `path`; "-": to standard output.
absl::Status WriteReport(const Json& report, const std::string& path);

}  // namespace penstock::bench
