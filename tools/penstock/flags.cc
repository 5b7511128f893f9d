#include "tools/penstock/flags.h"

#include <algorithm>
#include <numeric>

namespace penstock::launcher {
namespace {

const Flag* Find(std::span<const Flag> flags, std::string_view name) {
  auto it =
      std::find_if(flags.begin(), flags.end(), [&](const Flag& flag) { return flag.name == name; });
  return it == flags.end() ? nullptr : &*it;
}

int EditDistance(std::string_view a, std::string_view b) {
  std::vector<int> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    int diagonal = std::exchange(row[0], static_cast<int>(i));
    for (size_t j = 1; j <= b.size(); ++j) {
      const int substituted = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
    }
  }
  return row.back();
}

absl::Status UnknownFlag(std::span<const Flag> flags, const std::string& name) {
  const Flag* nearest = nullptr;
  int best = 4;
  for (const Flag& flag : flags) {
    const int distance = EditDistance(name, flag.name);
    if (distance < best) {
      best = distance;
      nearest = &flag;
    }
  }
  if (nearest != nullptr)
    return InvalidArgument("unknown flag --{}: did you mean --{}?", name, nearest->name);
  return InvalidArgument("unknown flag --{}: --help lists them", name);
}

}  // namespace

std::string CommandLine::Get(std::string_view name) const {
  auto it = values.find(name);
  return it == values.end() ? "" : it->second;
}

absl::StatusOr<CommandLine> Parse(std::span<const Flag> flags, std::span<char* const> args) {
  CommandLine line;
  for (const Flag& flag : flags) {
    if (!flag.usual.empty()) line.values[std::string(flag.name)] = flag.usual;
  }
  for (size_t i = 0; i < args.size(); ++i) {
    const std::string argument = args[i];
    if (argument.rfind("--", 0) != 0) {
      line.positional.push_back(argument);
      continue;
    }
    const size_t equals = argument.find('=');
    std::string name = argument.substr(2, equals == std::string::npos ? equals : equals - 2);
    std::replace(name.begin(), name.end(), '_', '-');
    const Flag* flag = Find(flags, name);
    if (flag == nullptr) return UnknownFlag(flags, name);
    std::string& value = line.values[name];
    if (equals != std::string::npos) {
      value = argument.substr(equals + 1);
    } else if (flag->value.empty()) {
      value = "true";
    } else if (i + 1 < args.size()) {
      value = args[++i];
    } else {
      return InvalidArgument("--{} needs a value: --{} {}", name, name, flag->value);
    }
  }
  return line;
}

std::vector<std::string> ArgumentsFor(unsigned role, std::span<const Flag> flags,
                                      const CommandLine& line) {
  std::vector<std::string> arguments;
  for (const Flag& flag : flags) {
    if ((flag.roles & role) == 0 || !line.Has(flag.name)) continue;
    const std::string_view name = flag.passed_as.empty() ? flag.name : flag.passed_as;
    arguments.push_back(fmt::format("--{}={}", name, line.Get(flag.name)));
  }
  return arguments;
}

std::string Describe(std::span<const Flag> flags) {
  std::string text;
  for (const Flag& flag : flags) {
    std::string left =
        fmt::format("--{}{}{}", flag.name, flag.value.empty() ? "" : " ", flag.value);
    text += fmt::format("  {:<34} {}", left, flag.help);
    if (!flag.usual.empty()) text += fmt::format(" [{}]", flag.usual);
    text += '\n';
  }
  return text;
}

}  // namespace penstock::launcher
