#include "tools/penstock/bench/engine_process.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "common/log.h"
#include "common/shm/segment.h"

namespace penstock::bench {
namespace {

// No request is open when a benchmark ends the engine, or none that matters.
constexpr int kDrainTimeoutS = 1;

int Supervise(std::vector<launcher::GroupSpec> groups, const std::string& engine_id,
              const std::string& sockets, const std::string& command) {
  InitLogging("penstock");
  launcher::Supervisor supervisor(std::move(groups), kDrainTimeoutS, [](std::string_view) {});
  const absl::StatusOr<int> code = supervisor.Run();
  (void)shm::Segment::Remove(engine_id);  // for a scheduler that was killed
  std::error_code ignored;
  std::filesystem::remove_all(sockets, ignored);
  if (code.ok()) return *code;
  fmt::print(stderr, "{}: {}\n", command, Message(code.status()));
  return launcher::kExitBadInput;
}

}  // namespace

absl::StatusOr<std::unique_ptr<EngineProcess>> EngineProcess::Start(
    std::vector<launcher::GroupSpec> groups, const std::string& engine_id,
    const std::string& sockets, const std::string& command) {
  const pid_t parent = getpid();
  std::fflush(nullptr);
  const pid_t pid = fork();
  if (pid < 0) return absl::ErrnoToStatus(errno, "cannot fork");
  if (pid == 0) {
    // Whatever ends the benchmark ends the engine in order.
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(1);
    _exit(Supervise(std::move(groups), engine_id, sockets, command));
  }
  return std::unique_ptr<EngineProcess>(new EngineProcess(pid));
}

EngineProcess::~EngineProcess() {
  if (pid_ < 0) return;
  kill(pid_, SIGTERM);
  waitpid(pid_, nullptr, 0);
}

absl::Status EngineProcess::CheckRunning() {
  if (pid_ >= 0) {
    if (waitpid(pid_, nullptr, WNOHANG) != pid_) return absl::OkStatus();
    pid_ = -1;
  }
  return FailedPrecondition("the engine did not start: the log lines above say why");
}

}  // namespace penstock::bench
