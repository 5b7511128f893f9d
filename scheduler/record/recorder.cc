#include "scheduler/record/recorder.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "common/log.h"
#include "common/shm/event.h"
#include "scheduler/record/frame.h"

namespace penstock::scheduler {
namespace {

constexpr int kMaxFiles = 10'000;  // of one name

absl::Status WriteBytes(int fd, const char* data, size_t size) {
  while (size > 0) {
    const ssize_t written = write(fd, data, size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return ResourceExhausted("{}", std::strerror(errno));
    data += written;
    size -= static_cast<size_t>(written);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Recorder>> Recorder::Create(const std::string& path,
                                                           const record::Header& header) {
  std::string name = path;
  int fd = -1;
  for (int i = 1; i <= kMaxFiles && fd < 0; ++i) {
    fd = open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd >= 0 || errno != EEXIST) break;
    name = fmt::format("{}.{}", path, i);
  }
  if (fd < 0) {
    return InvalidArgument(
        "--record-plans {}: cannot make the file ({}): name one in a folder that can be written to",
        path, std::strerror(errno));
  }
  std::unique_ptr<Recorder> recorder(new Recorder(fd, name));
  if (absl::Status status = WriteBytes(fd, kRecordMagic, sizeof(kRecordMagic) - 1); !status.ok()) {
    recorder->Stop(Message(status));
  }
  *recorder->Add()->mutable_header() = header;
  recorder->HandOver();
  recorder->thread_ = std::thread([raw = recorder.get()] { raw->WriteAll(); });
  return recorder;
}

Recorder::Recorder(int fd, std::string path)
    : fd_(fd), path_(std::move(path)), block_(std::make_unique<Block>()) {}

Recorder::~Recorder() {
  Add()->set_end(true);
  HandOver();
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_one();
  thread_.join();
  close(fd_);
}

record::Event* Recorder::Add() {
  record::Event* event = block_->events->add_events();
  event->set_at_ns(shm::MonotonicNs());
  return event;
}

void Recorder::HandOver() {
  if (block_->events->events_size() == 0) return;
  const size_t bytes = block_->arena.SpaceAllocated();
  bool too_slow = false;
  {
    const std::lock_guard lock(mutex_);
    too_slow = backlog_bytes_ + bytes > kMaxBacklogBytes;
    if (!too_slow && !stopped()) {
      backlog_bytes_ += bytes;
      backlog_.push_back(std::move(block_));
      if (!spare_.empty()) {
        block_ = std::move(spare_.back());
        spare_.pop_back();
      }
    }
  }
  if (too_slow) Stop("the disk is too slow");
  if (stopped()) {
    if (block_ != nullptr) block_->Clear();
  } else {
    changed_.notify_one();
  }
  if (block_ == nullptr) block_ = std::make_unique<Block>();
}

void Recorder::Stop(const std::string& reason) {
  if (stopped_.exchange(true)) return;
  spdlog::error("msg=\"recording stopped, serving goes on\" file={} reason=\"{}\"", path_, reason);
}

absl::Status Recorder::WriteBlock(const record::Block& block) {
  MakeFrame(block, &frame_);
  return WriteBytes(fd_, frame_.data(), frame_.size());
}

void Recorder::WriteAll() {
  // Past a limit on the size of files a write is to fail, not to end the process.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGXFSZ);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return !backlog_.empty() || ending_; });
    if (backlog_.empty()) return;
    std::unique_ptr<Block> block = std::move(backlog_.front());
    backlog_.pop_front();
    backlog_bytes_ -= block->arena.SpaceAllocated();
    lock.unlock();
    if (!stopped()) {
      if (absl::Status status = WriteBlock(*block->events); !status.ok()) Stop(Message(status));
    }
    block->Clear();
    lock.lock();
    if (spare_.size() < kMaxSpareBlocks) spare_.push_back(std::move(block));
  }
}

}  // namespace penstock::scheduler
