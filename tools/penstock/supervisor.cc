#include "tools/penstock/supervisor.h"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "common/log.h"
#include "common/shm/event.h"

namespace penstock::launcher {
namespace {

constexpr int64_t kSecond = 1'000'000'000;
constexpr int64_t kFirstBackoff = kSecond / 20;
constexpr int64_t kLongestBackoff = 10 * kSecond;
constexpr int64_t kQuiet = 60 * kSecond;

std::string DescribeExit(int wait_status) {
  if (WIFSIGNALED(wait_status)) return fmt::format("signal={}", strsignal(WTERMSIG(wait_status)));
  return fmt::format("exit_code={}", WEXITSTATUS(wait_status));
}

}  // namespace

Supervisor::Supervisor(std::vector<GroupSpec> groups, int drain_timeout_s,
                       std::function<void(std::string_view)> on_notify)
    : drain_timeout_s_(drain_timeout_s), on_notify_(std::move(on_notify)) {
  for (GroupSpec& spec : groups) {
    Group group;
    group.processes.resize(spec.processes.size());
    group.spec = std::move(spec);
    groups_.push_back(std::move(group));
  }
}

Supervisor::~Supervisor() {
  for (Group& group : groups_) Signal(group, SIGKILL);
  if (notify_fd_ >= 0) close(notify_fd_);
  if (signal_fd_ >= 0) close(signal_fd_);
}

absl::Status Supervisor::OpenNotifySocket() {
  notify_fd_ = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  notify_path_ = fmt::format("@penstock-{}", getpid());
  notify_path_.copy(address.sun_path, sizeof(address.sun_path) - 1);
  address.sun_path[0] = '\0';  // an abstract name: leaves no file behind
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + notify_path_.size());
  if (notify_fd_ < 0 || bind(notify_fd_, reinterpret_cast<sockaddr*>(&address), length) != 0) {
    return absl::ErrnoToStatus(errno, "cannot make the notification socket");
  }
  return absl::OkStatus();
}

absl::StatusOr<pid_t> Supervisor::Spawn(const ProcessSpec& spec) const {
  std::vector<char*> argv;
  for (const std::string& argument : spec.argv) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) return absl::ErrnoToStatus(errno, "cannot fork");
  if (pid == 0) {
    // A process group of its own, so that a terminal's Ctrl-C reaches the launcher alone, which
    // ends all in order; and no orphans, should the launcher be killed.
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(1);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    setenv("NOTIFY_SOCKET", notify_path_.c_str(), 1);
    execv(argv[0], argv.data());
    const char* reason = strerror(errno);
    dprintf(STDERR_FILENO, "penstock: cannot run %s: %s\n", argv[0], reason);
    _exit(kExitBadInput);
  }
  return pid;
}

absl::Status Supervisor::Start(Group& group) {
  group.restart_at_ns = 0;
  group.started_ns = shm::MonotonicNs();
  for (size_t i = 0; i < group.processes.size(); ++i) {
    ASSIGN_OR_RETURN(group.processes[i].pid, Spawn(group.spec.processes[i]));
    spdlog::info("msg=\"started\" process={} pid={}", group.spec.processes[i].name,
                 group.processes[i].pid);
  }
  return absl::OkStatus();
}

void Supervisor::Signal(Group& group, int signal) {
  for (Process& process : group.processes) {
    if (process.pid > 0) kill(process.pid, signal);
  }
}

bool Supervisor::Running(const Group& group) {
  return std::any_of(group.processes.begin(), group.processes.end(),
                     [](const Process& p) { return p.pid > 0; });
}

void Supervisor::Reap() {
  int status = 0;
  pid_t pid;
  while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
    for (Group& group : groups_) {
      for (size_t i = 0; i < group.processes.size(); ++i) {
        if (group.processes[i].pid == pid) OnDeath(group, i, status);
      }
    }
  }
}

void Supervisor::OnDeath(Group& group, size_t index, int wait_status) {
  const std::string& name = group.spec.processes[index].name;
  const pid_t pid = std::exchange(group.processes[index].pid, -1);
  if (stopping_) {
    spdlog::info("msg=\"ended\" process={} pid={} {}", name, pid, DescribeExit(wait_status));
    return;
  }
  if (WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == kExitBadInput) {
    spdlog::error("msg=\"cannot go on, the reason is in the lines above\" process={} pid={}", name,
                  pid);
    exit_code_ = kExitBadInput;
    OnSignal(SIGTERM);
    return;
  }
  if (group.restart_at_ns == 0) {  // the first of its group
    const int64_t now = shm::MonotonicNs();
    if (now - group.started_ns > kQuiet) group.backoff_ns = 0;
    group.backoff_ns =
        group.backoff_ns == 0 ? kFirstBackoff : std::min(2 * group.backoff_ns, kLongestBackoff);
    group.restart_at_ns = now + group.backoff_ns;
    spdlog::warn("msg=\"died, restarting\" process={} pid={} {} group={} backoff_ms={}", name, pid,
                 DescribeExit(wait_status), group.spec.name, group.backoff_ns / 1'000'000);
    Signal(group, SIGKILL);
  }
}

void Supervisor::ReadNotifications() {
  char state[1024];
  ssize_t bytes;
  while ((bytes = recv(notify_fd_, state, sizeof(state), 0)) > 0) {
    std::string_view rest(state, static_cast<size_t>(bytes));
    while (!rest.empty()) {
      const size_t line = std::min(rest.find('\n'), rest.size());
      on_notify_(rest.substr(0, line));
      rest.remove_prefix(std::min(line + 1, rest.size()));
    }
  }
}

void Supervisor::OnSignal(int signal) {
  if (stopping_) {
    spdlog::warn("msg=\"stopping at once\"");
    killing_ = true;
    for (Group& group : groups_) Signal(group, SIGKILL);
    return;
  }
  spdlog::info(
      "msg=\"draining: running streams end, then all stops; a second signal stops at once\" "
      "signal={}",
      strsignal(signal));
  stopping_ = true;
}

// Ends one group after the other.
void Supervisor::AdvanceShutdown() {
  while (stopping_group_ < groups_.size()) {
    Group& group = groups_[stopping_group_];
    if (!Running(group)) {
      ++stopping_group_;
      group_signalled_ = false;
      continue;
    }
    const int64_t now = shm::MonotonicNs();
    if (!group_signalled_) {
      Signal(group, killing_ ? SIGKILL : SIGTERM);
      group_signalled_ = true;
      kill_at_ns_ = now + (drain_timeout_s_ + 5) * kSecond;
    } else if (now >= kill_at_ns_) {
      spdlog::warn("msg=\"did not end in time, killing\" group={}", group.spec.name);
      Signal(group, SIGKILL);
      kill_at_ns_ = now + kSecond;
    }
    return;
  }
}

int Supervisor::TimeoutMs() const {
  int64_t next = stopping_ && group_signalled_ ? kill_at_ns_ : shm::kNoDeadline;
  if (!stopping_) {
    for (const Group& group : groups_) {
      if (group.restart_at_ns != 0 && !Running(group)) next = std::min(next, group.restart_at_ns);
    }
  }
  if (next == shm::kNoDeadline) return -1;
  return static_cast<int>(std::max<int64_t>(0, (next - shm::MonotonicNs()) / 1'000'000 + 1));
}

absl::StatusOr<int> Supervisor::Run() {
  sigset_t signals;
  sigemptyset(&signals);
  for (int signal : {SIGINT, SIGTERM, SIGHUP, SIGCHLD}) sigaddset(&signals, signal);
  sigprocmask(SIG_BLOCK, &signals, nullptr);
  signal_fd_ = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
  if (signal_fd_ < 0) return absl::ErrnoToStatus(errno, "cannot make a signalfd");
  RETURN_IF_ERROR(OpenNotifySocket());
  for (Group& group : groups_) RETURN_IF_ERROR(Start(group));

  while (!stopping_ || stopping_group_ < groups_.size()) {
    pollfd fds[2] = {{signal_fd_, POLLIN, 0}, {notify_fd_, POLLIN, 0}};
    poll(fds, 2, TimeoutMs());
    ReadNotifications();
    signalfd_siginfo info;
    while (read(signal_fd_, &info, sizeof(info)) == sizeof(info)) {
      if (info.ssi_signo == SIGCHLD) {
        Reap();
      } else {
        OnSignal(static_cast<int>(info.ssi_signo));
      }
    }
    if (stopping_) {
      AdvanceShutdown();
      continue;
    }
    for (Group& group : groups_) {
      if (group.restart_at_ns != 0 && !Running(group) &&
          shm::MonotonicNs() >= group.restart_at_ns) {
        RETURN_IF_ERROR(Start(group));
      }
    }
  }
  return exit_code_;
}

}  // namespace penstock::launcher
