// Writes a recording (proto/record.proto): the engine thread adds events, a thread of the
// recorder's own makes bytes of them and writes the file.
//
// The engine thread never waits for the disk: handing over moves a pointer under a lock that is
// held for no more than that. What the disk is behind with is kept in memory, up to
// kMaxBacklogBytes; then, and when a write fails (the disk is full), recording stops with one
// logged error, and the engine goes on. What the thread has written survives the process, however
// that ends: of one that is killed, a recording lacks the last moments (not: of a machine that is).
#pragma once

#include <google/protobuf/arena.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "common/status.h"
#include "proto/record.pb.h"

namespace penstock::scheduler {

constexpr uint32_t kRecordVersion = 1;
constexpr char kRecordMagic[] = "PENSTREC";  // without the final NUL

class Recorder {
 public:
  static constexpr size_t kMaxBacklogBytes = 256 << 20;

  // Makes the file, for its owner alone (mode 0600); the header is the first event. Nothing is
  // overwritten: if there is `path` already, what is made is `path`.1, .2 and so on. So a scheduler
  // that died and is started anew leaves the recording of its death alone. INVALID_ARGUMENT if it
  // cannot be made.
  static absl::StatusOr<std::unique_ptr<Recorder>> Create(const std::string& path,
                                                          const record::Header& header);
  // Ends the recording in order: waits until all is written.
  ~Recorder();

  // A new event with its time, to be filled in at once. Valid until HandOver.
  record::Event* Add();
  // Gives what was added to the writing thread. Call when a crash may come, or a wait.
  void HandOver();
  // It has failed: nothing will be written any more. Any thread.
  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }

  const std::string& path() const { return path_; }

 private:
  // Events on an arena, whose memory is used again: adding is cheap.
  struct Block {
    Block() : arena(memory, sizeof(memory)) { Clear(); }
    void Clear() {
      arena.Reset();
      events = google::protobuf::Arena::CreateMessage<record::Block>(&arena);
    }
    alignas(16) char memory[16 << 10];  // a step of some hundred requests; more is taken as needed
    google::protobuf::Arena arena;
    record::Block* events;
  };
  static constexpr size_t kMaxSpareBlocks = 8;

  Recorder(int fd, std::string path);
  void Stop(const std::string& reason);
  void WriteAll();
  absl::Status WriteBlock(const record::Block& block);

  const int fd_;
  const std::string path_;
  std::atomic<bool> stopped_{false};
  std::unique_ptr<Block> block_;  // engine thread

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::unique_ptr<Block>> backlog_;  // under mutex_, as what follows
  size_t backlog_bytes_ = 0;
  std::vector<std::unique_ptr<Block>> spare_;  // empty ones
  bool ending_ = false;

  std::string frame_;  // writing thread
  std::thread thread_;
};

}  // namespace penstock::scheduler
