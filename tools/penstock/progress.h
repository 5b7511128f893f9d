// What a command is at, on standard error where that is a terminal; elsewhere nothing.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

namespace penstock::launcher {

// One line that is drawn over and over. The cursor stays at its start: a log line that another
// process writes meanwhile takes its place, and the next Show draws it below. One thread.
class TerminalLine {
 public:
  TerminalLine();
  ~TerminalLine() { Clear(); }
  TerminalLine(const TerminalLine&) = delete;
  TerminalLine& operator=(const TerminalLine&) = delete;

  void Show(const std::string& text);
  void Clear();  // takes it off the screen

 private:
  const bool terminal_;
  bool shown_ = false;
};

// A bar on such a line, taken off the screen at its end.
class Progress {
 public:
  // `total` is what `done` comes to.
  Progress(std::string title, size_t total) : title_(std::move(title)), total_(total) {}

  // Draws the bar anew, `note` behind it.
  void Show(size_t done, const std::string& note);

 private:
  const std::string title_;
  const size_t total_;
  TerminalLine line_;
};

// The bar's text, without the terminal's control codes: "title [#####.....] 50/100 note".
std::string ProgressText(const std::string& title, size_t done, size_t total,
                         const std::string& note);

// What to show of the router's word on why it is not ready: what the engine says it lacks, with a
// bar if that ends in a percentage; empty if the engine says nothing. "engine E is not ready: rank
// 0 loads weights, 40%" is "rank 0 loads weights [############..................] 40/100".
std::string ReadinessText(std::string_view status);

}  // namespace penstock::launcher
