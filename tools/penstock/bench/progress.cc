#include "tools/penstock/bench/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace penstock::bench {

Progress::Progress(std::string title, size_t total)
    : title_(std::move(title)), total_(total), terminal_(isatty(STDERR_FILENO) != 0) {}

Progress::~Progress() {
  if (terminal_) fmt::print(stderr, "\r\033[K");
}

void Progress::Show(size_t done, const std::string& note) {
  if (terminal_) fmt::print(stderr, "\r\033[K{}", ProgressText(title_, done, total_, note));
}

std::string ProgressText(const std::string& title, size_t done, size_t total,
                         const std::string& note) {
  constexpr size_t kWidth = 30;
  const size_t filled = total == 0 ? 0 : std::min(kWidth, kWidth * done / total);
  return fmt::format("{} [{}{}] {}/{}{}{}", title, std::string(filled, '#'),
                     std::string(kWidth - filled, '.'), done, total, note.empty() ? "" : " ", note);
}

}  // namespace penstock::bench
