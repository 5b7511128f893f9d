// Logging and CHECK, on spdlog. One line an event, `key=value` pairs, to stderr:
//   2026-11-21T09:12:15.123Z INFO scheduler msg="engine ready" epoch=3 ranks=1
// Thread-safe. CHECK is for bugs: it logs and aborts; never for bad input.
#pragma once

#include <spdlog/spdlog.h>

#include <cstdlib>
#include <string_view>

namespace penstock {

// Sets up the process's logger. `role` stands in every line (router, scheduler, worker-0 ...).
// Call once at the start of main. Level from PENSTOCK_LOG_LEVEL (debug, info, warning, error), else
// info.
void InitLogging(std::string_view role);

[[noreturn]] void CheckFailed(const char* file, int line, const char* condition);

}  // namespace penstock

#define CHECK(condition)                                       \
  do {                                                         \
    if (!(condition)) [[unlikely]] {                           \
      ::penstock::CheckFailed(__FILE__, __LINE__, #condition); \
    }                                                          \
  } while (0)
