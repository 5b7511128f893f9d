#include "tests/unit/worker/worker_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "common/log.h"

namespace penstock::worker {

namespace {

// Programs of a bundle run elsewhere than where they were built.
std::string WorkerBinary() {
  const char* bin = std::getenv("PENSTOCK_BIN_DIR");
  return bin != nullptr ? std::string(bin) + "/penstock-worker" : PENSTOCK_WORKER_BINARY;
}

}  // namespace

WorkerProcess WorkerProcess::Start(const std::string& engine_id, int rank,
                                   const std::vector<std::string>& flags,
                                   const std::string& stderr_path) {
  std::vector<std::string> args = {WorkerBinary(), "--engine-id=" + engine_id,
                                   fmt::format("--rank={}", rank), "--die-with-parent"};
  args.insert(args.end(), flags.begin(), flags.end());
  std::vector<char*> argv;
  argv.reserve(args.size() + 1);
  for (std::string& arg : args) argv.push_back(arg.data());
  argv.push_back(nullptr);
  const pid_t pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    if (!stderr_path.empty()) {
      const int fd = open(stderr_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
      dup2(fd, STDERR_FILENO);
    }
    execv(argv[0], argv.data());
    _exit(127);
  }
  return WorkerProcess(pid);
}

WorkerProcess::~WorkerProcess() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  Wait();
}

void WorkerProcess::Signal(int signal) const { CHECK(kill(pid_, signal) == 0); }

int WorkerProcess::Wait() {
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0) CHECK(errno == EINTR);
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace penstock::worker
