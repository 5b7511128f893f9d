#include "kernels/cuda/linear_cache.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

#include "common/log.h"
#include "common/status.h"

namespace penstock::kernels::cuda {
namespace {

constexpr std::string_view kStream = "stream";
constexpr std::string_view kLt = "lt";
constexpr size_t kHexDigits = 128;

bool ParseAlgorithm(const std::string& hex, std::array<uint64_t, 8>& algorithm) {
  if (hex.size() != kHexDigits || hex.find_first_not_of("0123456789abcdef") != std::string::npos) {
    return false;
  }
  for (size_t i = 0; i < algorithm.size(); ++i) {
    algorithm[i] = std::strtoull(hex.substr(i * 16, 16).c_str(), nullptr, 16);
  }
  return true;
}

bool ParseLine(const std::string& line, LinearChoices& choices) {
  std::istringstream in(line);
  LinearShape shape;
  int output = 0;
  int32_t tokens = 0;
  std::string kind, what, rest;
  LinearChoice choice;
  if (!(in >> shape.n >> shape.k >> output >> shape.k_segments >> tokens >> kind >> what >>
        choice.us) ||
      in >> rest) {
    return false;
  }
  if (shape.n <= 0 || shape.k <= 0 || shape.k_segments <= 0 || tokens <= 0) return false;
  if (output < 0 || output > 2) return false;
  shape.output = static_cast<LinearOutput>(output);
  if (kind == kStream) {
    choice.stream = what;
  } else if (kind != kLt || !ParseAlgorithm(what, choice.algorithm)) {
    return false;
  }
  return choices.emplace(std::make_pair(shape, tokens), choice).second;
}

}  // namespace

std::string FormatChoices(std::string_view header, const LinearChoices& choices) {
  std::string text = fmt::format("{}\n", header);
  for (const auto& [key, choice] : choices) {
    const auto& [shape, tokens] = key;
    text += fmt::format("{} {} {} {} {} ", shape.n, shape.k, static_cast<int>(shape.output),
                        shape.k_segments, tokens);
    if (choice.stream.empty()) {
      text += fmt::format("{} ", kLt);
      for (const uint64_t word : choice.algorithm) text += fmt::format("{:016x}", word);
    } else {
      text += fmt::format("{} {}", kStream, choice.stream);
    }
    text += fmt::format(" {:.3f}\n", choice.us);
  }
  return text + "end\n";
}

absl::StatusOr<LinearChoices> ParseChoices(std::string_view text, std::string_view header) {
  std::istringstream in{std::string(text)};
  std::string line;
  if (!std::getline(in, line) || line != header) {
    return InvalidArgument("the header is '{}', not '{}'", line, header);
  }
  LinearChoices choices;
  for (int number = 2; std::getline(in, line); ++number) {
    if (line == "end") return choices;
    if (!ParseLine(line, choices)) return InvalidArgument("line {} is bad: '{}'", number, line);
  }
  return InvalidArgument("the end is missing");
}

LinearChoices LoadChoices(const std::string& path, std::string_view header) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return {};
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  absl::StatusOr<LinearChoices> choices = ParseChoices(text, header);
  if (!choices.ok()) {
    spdlog::warn("msg=\"linear choices are measured anew\" file={} reason=\"{}\"", path,
                 Message(choices.status()));
    return {};
  }
  return *std::move(choices);
}

absl::Status SaveChoices(const std::string& path, std::string_view header,
                         const LinearChoices& choices) {
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), error);
  const std::string temporary = fmt::format("{}.{}", path, getpid());
  {
    std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
    file << FormatChoices(header, choices);
    file.close();
    if (!file) {
      std::filesystem::remove(temporary, error);
      return Unavailable("{} cannot be written", temporary);
    }
  }
  std::filesystem::rename(temporary, path, error);
  if (error) {
    const std::string reason = error.message();
    std::filesystem::remove(temporary, error);
    return Unavailable("{} cannot be replaced: {}", path, reason);
  }
  return absl::OkStatus();
}

std::string DefaultCacheDirectory() {
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache != nullptr && *cache != 0) {
    return fmt::format("{}/penstock/cublaslt", cache);
  }
  if (const char* home = std::getenv("HOME"); home != nullptr && *home != 0) {
    return fmt::format("{}/.cache/penstock/cublaslt", home);
  }
  return "";
}

}  // namespace penstock::kernels::cuda
