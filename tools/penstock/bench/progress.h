// A progress bar on standard error, where that is a terminal; elsewhere nothing.
#pragma once

#include <cstddef>
#include <string>

namespace penstock::bench {

class Progress {
 public:
  // `total` is what `done` comes to.
  explicit Progress(std::string title, size_t total);
  ~Progress();  // takes the bar off the screen
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // Draws the bar anew, `note` behind it.
  void Show(size_t done, const std::string& note);

 private:
  const std::string title_;
  const size_t total_;
  const bool terminal_;
};

// The bar's text, without the terminal's control codes: "title [#####.....] 50/100 note".
std::string ProgressText(const std::string& title, size_t done, size_t total,
                         const std::string& note);

}  // namespace penstock::bench
