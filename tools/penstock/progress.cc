#include "tools/penstock/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <utility>

namespace penstock::launcher {

TerminalLine::TerminalLine() : terminal_(isatty(STDERR_FILENO) != 0) {}

void TerminalLine::Show(const std::string& text) {
  if (!terminal_) return;
  shown_ = true;
  // Clears the line; a text that is too long is cut off, not wrapped, so that it can be cleared.
  fmt::print(stderr, "\r\033[K\033[?7l{}\033[?7h\r", text);
}

void TerminalLine::Clear() {
  if (std::exchange(shown_, false)) fmt::print(stderr, "\r\033[K");
}

void Progress::Show(size_t done, const std::string& note) {
  line_.Show(ProgressText(title_, done, total_, note));
}

std::string ProgressText(const std::string& title, size_t done, size_t total,
                         const std::string& note) {
  constexpr size_t kWidth = 30;
  const size_t filled = total == 0 ? 0 : std::min(kWidth, kWidth * done / total);
  return fmt::format("{} [{}{}] {}/{}{}{}", title, std::string(filled, '#'),
                     std::string(kWidth - filled, '.'), done, total, note.empty() ? "" : " ", note);
}

std::string ReadinessText(std::string_view status) {
  constexpr std::string_view kLead = " is not ready: ";
  const size_t lead = status.find(kLead);
  if (lead == std::string_view::npos) return "";
  status.remove_prefix(lead + kLead.size());
  const size_t comma = status.rfind(", ");
  if (comma == std::string_view::npos || !status.ends_with('%')) return std::string(status);
  const std::string_view number = status.substr(comma + 2, status.size() - comma - 3);
  unsigned percent = 0;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), percent);
  if (error != std::errc() || end != number.data() + number.size()) return std::string(status);
  return ProgressText(std::string(status.substr(0, comma)), percent, 100, "");
}

}  // namespace penstock::launcher
