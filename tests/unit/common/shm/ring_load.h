// A writer and readers that put a ring under load and check every byte; run as processes
// (ring_test) and as threads (ring_threads_test).
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>

#include "common/log.h"
#include "common/shm/event.h"
#include "common/shm/ring.h"

namespace penstock::shm {

constexpr int kNumReaders = 3;
constexpr uint32_t kPadMark = 0xffffffff;

struct RingHeader {
  uint32_t bytes;
  uint32_t mark;  // kPadMark: a pad
  uint64_t number;
};

// What the parties share; lies in memory that all of them see, zeroed.
struct SharedRing {
  static constexpr size_t kBytes = 1 << 14;  // small, so that it is full most of the time

  std::atomic<uint64_t> tail;
  std::atomic<uint64_t> cursors[kNumReaders];
  std::atomic<uint32_t> num_attached;
  Event written, read;
  alignas(8) std::byte bytes[kBytes];

  std::span<std::byte> span() { return {bytes, kBytes}; }
};

inline void WritePadMark(std::byte* at, uint32_t bytes) {
  const uint32_t pad[2] = {bytes, kPadMark};
  std::memcpy(at, pad, sizeof(pad));
}

inline uint32_t PayloadWord(uint64_t number, uint32_t index) {
  return static_cast<uint32_t>(number * 2654435761u + uint64_t{index} * 40503u);
}

// Writes records first .. last-1 of random sizes, several to a publication now and then.
inline void WriteRecords(SharedRing* ring, uint32_t seed, uint64_t first, uint64_t last) {
  std::mt19937 random(seed);
  RingWriter writer(ring->span(), &ring->tail);
  for (uint64_t number = first; number < last; ++number) {
    const uint32_t words = random() % 4 == 0 ? random() % 1000 : random() % 10;
    const uint32_t bytes = RoundUp8(sizeof(RingHeader) + words * sizeof(uint32_t));
    std::byte* record = nullptr;
    while (true) {
      const uint32_t seen = ring->read.Current();
      uint64_t least = UINT64_MAX;
      for (auto& cursor : ring->cursors) {
        least = std::min(least, cursor.load(std::memory_order_acquire));
      }
      record = writer.Reserve(bytes, least, WritePadMark);
      if (record != nullptr) break;
      writer.Publish();  // what was held back
      ring->written.Notify();
      ring->read.Wait(seen, kNoDeadline);
    }
    const RingHeader header{bytes, words, number};
    std::memcpy(record, &header, sizeof(header));
    for (uint32_t i = 0; i < words; ++i) {
      const uint32_t word = PayloadWord(number, i);
      std::memcpy(record + sizeof(header) + i * sizeof(word), &word, sizeof(word));
    }
    if (random() % 4 == 0 || number + 1 == last) {
      writer.Publish();
      ring->written.Notify();
    }
  }
}

// Reads records first .. last-1, checks them, and frees them some at a time. False if any is wrong.
inline bool ReadRecords(SharedRing* ring, int reader_index, uint32_t seed, uint64_t first,
                        uint64_t last) {
  std::mt19937 random(seed);
  std::atomic<uint64_t>& shown = ring->cursors[reader_index];
  RingReader reader(ring->span(), &ring->tail, shown.load());
  ring->num_attached.fetch_add(1);
  for (uint64_t number = first; number < last;) {
    const uint32_t seen = ring->written.Current();
    const std::byte* record = reader.Next();
    if (record == nullptr) {
      shown.store(reader.cursor(), std::memory_order_release);
      ring->read.Notify();
      if (reader.Empty()) ring->written.Wait(seen, kNoDeadline);
      continue;
    }
    uint32_t head[2];
    std::memcpy(head, record, sizeof(head));
    if (head[1] == kPadMark) continue;
    RingHeader header;
    std::memcpy(&header, record, sizeof(header));
    if (header.number != number) return false;
    for (uint32_t i = 0; i < header.mark; ++i) {
      uint32_t word;
      std::memcpy(&word, record + sizeof(header) + i * sizeof(word), sizeof(word));
      if (word != PayloadWord(number, i)) return false;
    }
    ++number;
    if (random() % 4 == 0) {
      shown.store(reader.cursor(), std::memory_order_release);
      ring->read.Notify();
    }
  }
  shown.store(reader.cursor(), std::memory_order_release);
  ring->read.Notify();
  return true;
}

}  // namespace penstock::shm
