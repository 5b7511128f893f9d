// A penstock-worker process of a test: killed with the object, never left behind.
#pragma once

#include <sys/types.h>

#include <string>
#include <utility>
#include <vector>

namespace penstock::worker {

class WorkerProcess {
 public:
  // penstock-worker of $PENSTOCK_BIN_DIR, else of this build, with --engine-id, --rank and `flags`.
  // It ends when the thread that called does. stderr_path: where its log goes; empty: ours.
  static WorkerProcess Start(const std::string& engine_id, int rank,
                             const std::vector<std::string>& flags,
                             const std::string& stderr_path = "");
  WorkerProcess(WorkerProcess&& other) noexcept : pid_(std::exchange(other.pid_, -1)) {}
  WorkerProcess& operator=(WorkerProcess&&) = delete;
  ~WorkerProcess();

  pid_t pid() const { return pid_; }
  void Signal(int signal) const;
  // Waits for its end: the exit code, or 128 + the signal that ended it.
  int Wait();

 private:
  explicit WorkerProcess(pid_t pid) : pid_(pid) {}
  pid_t pid_;
};

}  // namespace penstock::worker
