#include "router/stream/stop_matcher.h"

#include <algorithm>

namespace penstock::router {

StopMatcher::StopMatcher(const std::vector<std::string>& stops) {
  for (size_t i = 0; i < stops.size(); ++i) {
    const std::string& stop = stops[i];
    if (stop.empty()) continue;
    std::vector<size_t> fallback(stop.size(), 0);
    size_t border = 0;
    for (size_t n = 1; n < stop.size(); ++n) {
      fallback[n] = border;
      while (border > 0 && stop[n] != stop[border]) border = fallback[border];
      if (stop[n] == stop[border]) ++border;
    }
    automata_.push_back({static_cast<int>(i), stop, std::move(fallback)});
  }
}

StopMatcher::Match StopMatcher::Feed(std::string_view piece) {
  if (automata_.empty()) return {};
  for (size_t at = 0; at < piece.size(); ++at) {
    Match match;
    num_held_ = 0;
    for (Automaton& automaton : automata_) {
      size_t& matched = automaton.matched;
      while (matched > 0 && automaton.stop[matched] != piece[at]) {
        matched = automaton.fallback[matched];
      }
      if (automaton.stop[matched] == piece[at]) ++matched;
      if (matched == automaton.stop.size()) {
        if (matched > match.length) match = {automaton.stop_index, at + 1, matched};
        matched = 0;  // keeps the index in bounds; nothing is fed after a match
      }
      num_held_ = std::max(num_held_, matched);
    }
    if (match.stop_index >= 0) return match;
  }
  return {};
}

}  // namespace penstock::router
