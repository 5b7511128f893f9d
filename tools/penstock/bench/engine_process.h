// A scheduler and its workers, run beside the benchmark by a supervisor in a process of its own.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "common/status.h"
#include "tools/penstock/engine.h"

namespace penstock::bench {

class EngineProcess {
 public:
  // Forks: the caller must have no other threads yet. `groups` is the engine whose segment is
  // `engine_id` and whose sockets lie in the folder `sockets` (empty: it has none). Both are gone
  // once it has ended, whatever became of the caller. `command` is what the caller is called.
  static absl::StatusOr<std::unique_ptr<EngineProcess>> Start(
      std::vector<launcher::GroupSpec> groups, const std::string& engine_id,
      const std::string& sockets, const std::string& command);
  // Ends the engine and waits for its end.
  ~EngineProcess();

  // FAILED_PRECONDITION if it has ended by itself: it was asked for what it cannot do, and its log
  // says what.
  absl::Status CheckRunning();

 private:
  explicit EngineProcess(pid_t pid) : pid_(pid) {}
  pid_t pid_;
};

}  // namespace penstock::bench
