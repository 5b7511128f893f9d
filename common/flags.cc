#include "common/flags.h"

#include <algorithm>
#include <string>
#include <string_view>

#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/flags/usage_config.h"
#include "absl/strings/match.h"

namespace penstock {
namespace {

// --max-model-len=a-b -> --max_model_len=a-b.
void UseUnderscores(char* argument) {
  const std::string_view text = argument;
  if (!text.starts_with("--")) return;
  std::replace(argument + 2, argument + std::min(text.find('='), text.size()), '-', '_');
}

bool IsMain(absl::string_view path) { return absl::EndsWith(path, "/main.cc"); }

// "/home/me/penstock/worker/main.cc" -> "worker/main.cc".
std::string InRepository(absl::string_view path) {
  const size_t file = path.rfind('/');
  const size_t folder = file == path.npos || file == 0 ? path.npos : path.rfind('/', file - 1);
  return std::string(folder == path.npos ? path : path.substr(folder + 1));
}

}  // namespace

std::vector<char*> ParseFlags(const char* usage, int argc, char** argv) {
  absl::SetProgramUsageMessage(usage);
  // Abseil's own filter wants a file named after the program.
  absl::FlagsUsageConfig config;
  config.contains_help_flags = IsMain;
  config.contains_helpshort_flags = IsMain;
  config.normalize_filename = InRepository;
  absl::SetFlagsUsageConfig(config);
  std::for_each(argv, argv + argc, UseUnderscores);
  return absl::ParseCommandLine(argc, argv);
}

}  // namespace penstock
