#include "scheduler/peak_use.h"

#include <algorithm>

namespace penstock::scheduler {

void PeakUse::Clear() {
  entries_.clear();
  Sum();
}

void PeakUse::Sort() {
  // By `held`, too, so that two entries compare as one number does.
  std::sort(entries_.begin(), entries_.end(), [](Entry a, Entry b) {
    return (uint64_t{a.remaining} << 32 | a.held) > (uint64_t{b.remaining} << 32 | b.held);
  });
  Sum();
}

size_t PeakUse::PlaceOf(Entry entry) const {
  return std::partition_point(
             entries_.begin(), entries_.end(),
             [&](const Entry& other) { return other.remaining > entry.remaining; }) -
         entries_.begin();
}

uint64_t PeakUse::PeakWith(Entry entry) const {
  const size_t place = PlaceOf(entry);
  const uint64_t at_its_end =
      held_before_[place] + entry.held + (place + 1) * uint64_t{entry.remaining};
  // At the ends before its own in the array it is gone; at those after it, it is there and the
  // number of those that grow is one more.
  const uint64_t after = place < entries_.size() ? peak_from_[place] + entry.held : 0;
  return std::max({peak_before_[place], at_its_end, after});
}

void PeakUse::Insert(Entry entry) {
  entries_.insert(entries_.begin() + static_cast<ptrdiff_t>(PlaceOf(entry)), entry);
  Sum();
}

void PeakUse::Sum() {
  const size_t n = entries_.size();
  held_before_.resize(n + 1);
  peak_before_.resize(n + 1);
  peak_from_.resize(n + 1);
  held_before_[0] = peak_before_[0] = peak_from_[n] = 0;
  for (size_t i = 0; i < n; ++i) {
    held_before_[i + 1] = held_before_[i] + entries_[i].held;
    const uint64_t use = held_before_[i + 1] + (i + 1) * uint64_t{entries_[i].remaining};
    peak_before_[i + 1] = std::max(peak_before_[i], use);
    peak_from_[i] = use + entries_[i].remaining;
  }
  for (size_t i = n; i > 0; --i) peak_from_[i - 1] = std::max(peak_from_[i - 1], peak_from_[i]);
}

}  // namespace penstock::scheduler
