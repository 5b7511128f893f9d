#include "tests/unit/scheduler/processes.h"

#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
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

std::string HttpGet(int port, const std::string& path) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  CHECK(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
  const std::string request = fmt::format("GET {} HTTP/1.0\r\n\r\n", path);
  CHECK(write(fd, request.data(), request.size()) == static_cast<ssize_t>(request.size()));
  std::string reply;
  char buffer[4096];
  for (ssize_t bytes; (bytes = read(fd, buffer, sizeof(buffer))) > 0;) reply.append(buffer, bytes);
  close(fd);
  return reply;
}

int FreePort() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  CHECK(bind(fd, reinterpret_cast<sockaddr*>(&address), size) == 0);
  CHECK(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0);
  close(fd);
  return ntohs(address.sin_port);
}

}  // namespace penstock::scheduler
