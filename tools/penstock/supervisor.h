// Starts a set of processes, keeps them running and ends them in order.
//
// Processes stand in groups: when one of a group dies, the rest of it is killed and the group
// starts anew (the ranks of an engine share their state, so they live and die together). Restarts
// back off from 50 ms to 10 s and begin anew after a minute of quiet. An exit code of 2 means that
// the process was asked for something it cannot do: no restart would help, so everything stops. One
// thread; the caller's process must have no others when Run is called.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"

namespace penstock::launcher {

constexpr int kExitBadInput = 2;

struct ProcessSpec {
  std::string name;  // for the log: "worker-0"
  std::vector<std::string> argv;
};

struct GroupSpec {
  std::string name;
  std::vector<ProcessSpec> processes;
};

class Supervisor {
 public:
  // Groups start together and are ended in the order given, each once the one before is gone.
  // `on_notify(line)` is called with each line the processes say by NotifySupervisor
  // (common/notify.h).
  Supervisor(std::vector<GroupSpec> groups, int drain_timeout_s,
             std::function<void(std::string_view)> on_notify);
  ~Supervisor();

  // Runs until SIGINT or SIGTERM, which ends the groups in order with SIGTERM (a second one, or the
  // time-out, with SIGKILL), or until a process exits with kExitBadInput. Returns the launcher's
  // exit code.
  absl::StatusOr<int> Run();

 private:
  struct Process {
    pid_t pid = -1;
  };
  struct Group {
    GroupSpec spec;
    std::vector<Process> processes;
    int64_t started_ns = 0;
    int64_t restart_at_ns = 0;  // 0: not waiting for a restart
    int64_t backoff_ns = 0;
  };

  absl::Status OpenNotifySocket();
  absl::Status Start(Group& group);
  absl::StatusOr<pid_t> Spawn(const ProcessSpec& spec) const;
  void Signal(Group& group, int signal);
  static bool Running(const Group& group);
  void Reap();
  void OnDeath(Group& group, size_t index, int wait_status);
  void ReadNotifications();
  void OnSignal(int signal);
  void AdvanceShutdown();
  int TimeoutMs() const;

  std::vector<Group> groups_;
  const int drain_timeout_s_;
  std::function<void(std::string_view)> on_notify_;
  std::string notify_path_;
  int notify_fd_ = -1;
  int signal_fd_ = -1;
  bool stopping_ = false;
  bool killing_ = false;
  size_t stopping_group_ = 0;  // groups before it have ended
  bool group_signalled_ = false;
  int64_t kill_at_ns_ = 0;
  int exit_code_ = 0;
};

}  // namespace penstock::launcher
