// Values of the benchmarks' flags. Errors are INVALID_ARGUMENT and name the flag.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "tools/penstock/flags.h"

namespace penstock::bench {

struct BatchShape {
  int batch_size = 0;
  int input_len = 0;
};

// "1,8,32": whole numbers of at least 1. "none" or nothing: empty.
absl::StatusOr<std::vector<int>> IntegerList(const launcher::CommandLine& line,
                                             std::string_view name);
// "1x512,16x2048": batch size x prompt length. "none" or nothing: empty.
absl::StatusOr<std::vector<BatchShape>> ShapeList(const launcher::CommandLine& line,
                                                  std::string_view name);
// Requests a second: a positive number or "inf".
absl::StatusOr<double> Rate(const launcher::CommandLine& line, std::string_view name);
// A number from `min` to `max`.
absl::StatusOr<double> Number(const launcher::CommandLine& line, std::string_view name, double min,
                              double max);

// Several loads, one after the other: pairs of (concurrency, number of prompts). `name_prompts` has
// as many entries as `name_concurrency`, or one for all.
struct LoadShape {
  int max_concurrency = 0;  // 0: no limit
  int num_prompts = 0;
};
absl::StatusOr<std::vector<LoadShape>> LoadShapes(const launcher::CommandLine& line,
                                                  std::string_view name_concurrency,
                                                  std::string_view name_prompts);

}  // namespace penstock::bench
