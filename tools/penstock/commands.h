// The launcher's commands. Each returns the process's exit code: 0, 1 for a failure, 2 for a
// command line or an input that cannot work.
#pragma once

#include <span>

namespace penstock::launcher {

int Serve(std::span<char* const> args);
int Chat(std::span<char* const> args);
int Replay(std::span<char* const> args);
int Bench(std::span<char* const> args);  // of which these are the parts:
int BenchEngine(std::span<char* const> args);
int BenchServe(std::span<char* const> args);

}  // namespace penstock::launcher
