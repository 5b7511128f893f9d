// Finds stop strings in text that comes in pieces, by running one Knuth-Morris-Pratt automaton a
// stop string: time is bytes times stop strings, however the text is cut. Source: Knuth, Morris,
// Pratt 1977, "Fast Pattern Matching in Strings".
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace penstock::router {

// Not thread-safe.
class StopMatcher {
 public:
  // Empty strings are ignored.
  explicit StopMatcher(const std::vector<std::string>& stops);

  struct Match {
    int stop_index = -1;  // into `stops`; -1: none
    size_t end = 0;       // of the stop string, in the piece just fed
    size_t length = 0;    // of the stop string, which may have begun in an earlier piece
  };

  // Feeds the text's next piece. The match that ends first wins; the longest of those that end
  // there. After a match nothing more may be fed.
  Match Feed(std::string_view piece);

  // How many bytes at the end of the text so far may still become part of a stop string.
  size_t num_held() const { return num_held_; }

 private:
  struct Automaton {
    int stop_index;
    std::string stop;
    std::vector<size_t> fallback;  // fallback[n]: longest proper border of the first n bytes
    size_t matched = 0;            // bytes of `stop` that the text ends with
  };

  std::vector<Automaton> automata_;
  size_t num_held_ = 0;
};

}  // namespace penstock::router
