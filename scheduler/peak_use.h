// The peak of KV memory that a set of requests will need, if each grows by one token a step until
// it ends and then gives back all it holds. Admission's look ahead: "Past-Future Scheduler for LLM
// Serving under SLA Guarantees" (Gong et al., 2025), whose peak this is.
//
// Use rises until somebody ends, so its peak is at one of the ends. With requests sorted by what
// remains, longest first, when the i-th ends those before it are still there:
//   use(i) = held(1) + ... + held(i) + i * remaining(i),   peak = max of use(i).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace penstock::scheduler {

class PeakUse {
 public:
  struct Entry {
    uint32_t remaining = 0;  // tokens until it ends
    uint32_t held = 0;       // tokens it holds now
  };

  // Forgets all; keeps its memory.
  void Clear();
  // Adds a request. Call Sort() when all are in.
  void Add(Entry entry) { entries_.push_back(entry); }
  // O(n log n).
  void Sort();

  // In tokens; 0 if there is none.
  uint64_t Peak() const { return entries_.empty() ? 0 : peak_before_.back(); }
  // The peak if `entry` were there too. O(log n).
  uint64_t PeakWith(Entry entry) const;
  // Puts `entry` in. O(n).
  void Insert(Entry entry);

 private:
  size_t PlaceOf(Entry entry) const;
  void Sum();

  std::vector<Entry> entries_;  // longest remaining first
  // One more than there are entries, over those before i and those from i on:
  std::vector<uint64_t> held_before_;  // sum of held
  std::vector<uint64_t> peak_before_;  // max of use
  std::vector<uint64_t> peak_from_;    // max of (use + remaining): with one more beside them
};

}  // namespace penstock::scheduler
