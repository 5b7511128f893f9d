#include "tests/unit/scheduler/processes.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "common/log.h"

namespace penstock::scheduler {

ChildProcess::ChildProcess(const std::vector<std::string>& arguments) {
  std::vector<char*> argv;
  argv.reserve(arguments.size() + 1);
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  pid_ = fork();
  CHECK(pid_ >= 0);
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    execv(argv[0], argv.data());
    _exit(127);
  }
}

void ChildProcess::Signal(int signal) const { CHECK(kill(pid_, signal) == 0); }

void ChildProcess::Kill() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  Wait();
}

int ChildProcess::Wait() {
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0) CHECK(errno == EINTR);
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

ChildProcess StartScheduler(const std::string& engine_id, const std::string& address,
                            const std::vector<std::string>& flags) {
  std::vector<std::string> arguments = {PENSTOCK_SCHEDULER_BINARY, "--engine-id=" + engine_id,
                                        "--listen=" + address, "--check-invariants"};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  return ChildProcess(arguments);
}

ChildProcess StartNullWorker(const std::string& engine_id, int rank,
                             const std::vector<std::string>& flags) {
  std::vector<std::string> arguments = {PENSTOCK_WORKER_BINARY, "--engine-id=" + engine_id,
                                        fmt::format("--rank={}", rank), "--device=null"};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  return ChildProcess(arguments);
}

}  // namespace penstock::scheduler
