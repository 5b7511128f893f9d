// The real penstock-scheduler and penstock-worker as processes of a test: killed with the object,
// or with the test's thread, never left behind.
#pragma once

#include <sys/types.h>

#include <string>
#include <utility>
#include <vector>

namespace penstock::scheduler {

class ChildProcess {
 public:
  ChildProcess() = default;
  explicit ChildProcess(const std::vector<std::string>& arguments);
  ChildProcess(ChildProcess&& other) noexcept : pid_(std::exchange(other.pid_, -1)) {}
  ChildProcess& operator=(ChildProcess&& other) noexcept {
    Kill();
    pid_ = std::exchange(other.pid_, -1);
    return *this;
  }
  ~ChildProcess() { Kill(); }

  void Signal(int signal) const;
  void Kill();  // kill -9, and waits for the end
  int Wait();   // the exit code, or 128 + the signal that ended it
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = -1;
};

ChildProcess StartScheduler(const std::string& engine_id, const std::string& address,
                            const std::vector<std::string>& flags = {});
ChildProcess StartNullWorker(const std::string& engine_id, int rank,
                             const std::vector<std::string>& flags = {});

// The whole answer to a GET from this machine, its head included.
std::string HttpGet(int port, const std::string& path);
// A TCP port that was free just now.
int FreePort();

}  // namespace penstock::scheduler
