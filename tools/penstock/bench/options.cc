#include "tools/penstock/bench/options.h"

#include <charconv>
#include <cmath>
#include <limits>
#include <optional>

namespace penstock::bench {
namespace {

constexpr int kLargest = 10'000'000;

std::vector<std::string> Split(const std::string& text) {
  std::vector<std::string> items;
  if (text.empty() || text == "none") return items;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    items.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return items;
}

std::optional<int> Positive(std::string_view text) {
  int value = 0;
  const char* end = text.data() + text.size();
  const auto [parsed, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || parsed != end || value < 1 || value > kLargest) return std::nullopt;
  return value;
}

}  // namespace

absl::StatusOr<std::vector<int>> IntegerList(const launcher::CommandLine& line,
                                             std::string_view name) {
  std::vector<int> values;
  for (const std::string& item : Split(line.Get(name))) {
    const std::optional<int> value = Positive(item);
    if (!value) {
      return InvalidArgument(
          "--{} {}: \"{}\" is not a whole number from 1: give for example 1,8,32", name,
          line.Get(name), item);
    }
    values.push_back(*value);
  }
  return values;
}

absl::StatusOr<std::vector<BatchShape>> ShapeList(const launcher::CommandLine& line,
                                                  std::string_view name) {
  std::vector<BatchShape> shapes;
  for (const std::string& item : Split(line.Get(name))) {
    const size_t x = item.find('x');
    std::optional<int> batch_size, input_len;
    if (x != std::string::npos) {
      batch_size = Positive(std::string_view(item).substr(0, x));
      input_len = Positive(std::string_view(item).substr(x + 1));
    }
    if (!batch_size || !input_len) {
      return InvalidArgument(
          "--{} {}: \"{}\" is not BATCHxLENGTH: give for example 1x512,16x2048 or none", name,
          line.Get(name), item);
    }
    shapes.push_back({*batch_size, *input_len});
  }
  return shapes;
}

absl::StatusOr<double> Number(const launcher::CommandLine& line, std::string_view name, double min,
                              double max) {
  const std::string text = line.Get(name);
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [parsed, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || parsed != end || !(value >= min && value <= max)) {
    return InvalidArgument("--{} {} must be a number from {} to {}", name, text, min, max);
  }
  return value;
}

absl::StatusOr<double> Rate(const launcher::CommandLine& line, std::string_view name) {
  const std::string text = line.Get(name);
  if (text == "inf") return std::numeric_limits<double>::infinity();
  absl::StatusOr<double> value = Number(line, name, 1e-6, 1e9);
  if (value.ok()) return value;
  return InvalidArgument("--{} {} must be requests a second, above 0, or inf", name, text);
}

absl::StatusOr<std::vector<LoadShape>> LoadShapes(const launcher::CommandLine& line,
                                                  std::string_view name_concurrency,
                                                  std::string_view name_prompts) {
  ASSIGN_OR_RETURN(const std::vector<int> concurrency, IntegerList(line, name_concurrency));
  ASSIGN_OR_RETURN(const std::vector<int> prompts, IntegerList(line, name_prompts));
  const size_t count = std::max<size_t>(1, concurrency.size());
  if (prompts.size() != 1 && prompts.size() != count) {
    return InvalidArgument("--{} {} must be one number or as many as --{} has: {}", name_prompts,
                           line.Get(name_prompts), name_concurrency, count);
  }
  std::vector<LoadShape> shapes;
  for (size_t i = 0; i < count; ++i) {
    shapes.push_back(
        {concurrency.empty() ? 0 : concurrency[i], prompts.size() == 1 ? prompts[0] : prompts[i]});
  }
  return shapes;
}

}  // namespace penstock::bench
