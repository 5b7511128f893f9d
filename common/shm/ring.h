// A ring of byte records with one writer and readers that keep their own cursors; both may be
// processes.
//
// Positions are bytes ever written, so they never wrap; a record is contiguous, 8-aligned and at
// most a quarter of the ring. A record that would cross the end is preceded by a pad. The writer
// never passes the slowest cursor. T is the record's header type: its first field `uint32_t bytes`
// is the record's whole size.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "common/log.h"

namespace penstock::shm {

constexpr uint32_t RoundUp8(uint32_t bytes) { return (bytes + 7) & ~7u; }

class RingWriter {
 public:
  // `tail` starts where it stands: a new writer goes on after a dead one. `ring` has a power-of-two
  // size.
  RingWriter(std::span<std::byte> ring, std::atomic<uint64_t>* tail)
      : ring_(ring), tail_(tail), position_(tail->load(std::memory_order_acquire)) {}

  // Room for a record of `bytes` (a multiple of 8), or null if the readers, the slowest of which
  // stands at `min_cursor`, have not freed enough. `write_pad(at, bytes)` must mark a pad record.
  template <typename WritePad>
  std::byte* Reserve(uint32_t bytes, uint64_t min_cursor, WritePad write_pad) {
    CHECK(bytes % 8 == 0 && bytes <= ring_.size() / 4);
    const uint64_t mask = ring_.size() - 1;
    const uint64_t to_end = ring_.size() - (position_ & mask);
    const uint64_t pad = to_end < bytes ? to_end : 0;
    if (position_ + pad + bytes - min_cursor > ring_.size()) return nullptr;
    if (pad != 0) {
      write_pad(ring_.data() + (position_ & mask), static_cast<uint32_t>(pad));
      position_ += pad;
    }
    std::byte* record = ring_.data() + (position_ & mask);
    position_ += bytes;
    return record;
  }

  // Makes all reserved records visible. Notify the readers' event afterwards.
  void Publish() { tail_->store(position_, std::memory_order_release); }

 private:
  std::span<std::byte> ring_;
  std::atomic<uint64_t>* tail_;
  uint64_t position_;
};

class RingReader {
 public:
  RingReader(std::span<const std::byte> ring, const std::atomic<uint64_t>* tail, uint64_t cursor)
      : ring_(ring), tail_(tail), cursor_(cursor) {}

  // The next record (pads included), or null if there is none. Valid until the cursor that the
  // writer is shown passes it.
  const std::byte* Next() {
    if (cursor_ == tail_->load(std::memory_order_acquire)) return nullptr;
    const std::byte* record = ring_.data() + (cursor_ & (ring_.size() - 1));
    cursor_ += *reinterpret_cast<const uint32_t*>(record);
    return record;
  }
  bool Empty() const { return cursor_ == tail_->load(std::memory_order_acquire); }
  uint64_t cursor() const { return cursor_; }

 private:
  std::span<const std::byte> ring_;
  const std::atomic<uint64_t>* tail_;
  uint64_t cursor_;
};

}  // namespace penstock::shm
