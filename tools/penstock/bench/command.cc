// penstock bench: which benchmark.

#include <fmt/format.h>

#include <cstdio>
#include <string_view>

#include "tools/penstock/commands.h"

namespace penstock::launcher {
namespace {

constexpr std::string_view kUsage =
    R"(usage: penstock bench engine MODEL [flags]   an engine without its router
       penstock bench serve [flags]          a running server, over HTTP or gRPC

Each lists its flags with --help. Figures go to a table, and with --json FILE to a file.
)";

}  // namespace

int Bench(std::span<char* const> args) {
  const std::string_view what = args.empty() ? "--help" : args[0];
  if (what == "engine") return BenchEngine(args.subspan(1));
  if (what == "serve") return BenchServe(args.subspan(1));
  const bool asked = what == "--help" || what == "-h" || what == "help";
  if (!asked) fmt::print(stderr, "penstock bench: unknown benchmark \"{}\"\n\n", what);
  fmt::print(asked ? stdout : stderr, "{}", kUsage);
  return asked ? 0 : 2;
}

}  // namespace penstock::launcher
