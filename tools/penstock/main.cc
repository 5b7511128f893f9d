// penstock: serves a model on this machine, and talks to it.

#include <fmt/format.h>

#include <cstdio>
#include <string_view>

#include "tools/penstock/commands.h"

namespace {

constexpr std::string_view kUsage = R"(penstock serves large language models.

  penstock serve MODEL [flags]   serve a model over OpenAI HTTP and gRPC
  penstock chat [flags]          talk to a running server in the terminal
  penstock bench engine|serve    measure an engine, or a running server
  penstock replay FILE [flags]   what a server recorded, against the policy or a model
  penstock version

Each lists its flags with --help. A first try:

  penstock serve SmolLM2-135M-Instruct.Q4_1.gguf
  penstock chat
)";

}  // namespace

int main(int argc, char** argv) {
  const std::string_view command = argc > 1 ? argv[1] : "--help";
  const std::span<char* const> rest(argv + (argc > 1 ? 2 : 1), argv + argc);
  if (command == "serve") return penstock::launcher::Serve(rest);
  if (command == "chat") return penstock::launcher::Chat(rest);
  if (command == "bench") return penstock::launcher::Bench(rest);
  if (command == "replay") return penstock::launcher::Replay(rest);
  if (command == "version" || command == "--version") {
    fmt::print("penstock {}\n", PENSTOCK_VERSION);
    return 0;
  }
  const bool asked = command == "--help" || command == "-h" || command == "help";
  if (!asked) fmt::print(stderr, "penstock: unknown command \"{}\"\n\n", command);
  fmt::print(asked ? stdout : stderr, "{}", kUsage);
  return asked ? 0 : 2;
}
