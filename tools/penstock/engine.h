// An engine as the launcher starts it: its flags, its processes (a scheduler and a worker a rank),
// and the folder of the sockets between processes. `penstock serve` puts a router before it,
// `penstock bench engine` measures it bare.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "tools/penstock/flags.h"
#include "tools/penstock/supervisor.h"

namespace penstock::launcher {

// The flags of scheduler and workers.
std::span<const Flag> EngineFlags();

// `text` as a whole number; INVALID_ARGUMENT names --name and the range.
absl::StatusOr<int> IntegerFlag(const CommandLine& line, std::string_view name, int min, int max);

// Checks the values of EngineFlags that can be checked without a model or a device, and fills in
// those that depend on the device.
absl::Status CompleteEngineFlags(CommandLine* line);

// The absolute path of a model that can be read; NOT_FOUND, PERMISSION_DENIED.
absl::StatusOr<std::string> CheckModel(const std::string& path);

// What a model is called unless --served-model-name says otherwise.
std::string ModelName(const CommandLine& line, const std::string& model);

// The process `program` of this binary's folder, with `own` arguments and those of `line` for
// `role`.
ProcessSpec MakeProcess(const std::string& name, const std::string& program, unsigned role,
                        std::span<const Flag> flags, const CommandLine& line,
                        std::vector<std::string> own);

// The workers' group: a rank each.
absl::StatusOr<GroupSpec> WorkerGroup(std::span<const Flag> flags, const CommandLine& line,
                                      const std::string& model, const std::string& engine_id);

// The scheduler's group and the workers', in the order in which they are ended. `flags` is all that
// `line` was parsed by. `address` is where the scheduler listens.
absl::StatusOr<std::vector<GroupSpec>> EngineGroups(std::span<const Flag> flags,
                                                    const CommandLine& line,
                                                    const std::string& model,
                                                    const std::string& engine_id,
                                                    const std::string& address);

// A folder for the sockets between the processes, removed with the object.
class SocketDirectory {
 public:
  absl::Status Make();
  ~SocketDirectory();
  // Where an engine of this folder listens.
  std::string EngineAddress() const { return "ipc://" + path_ + "/engine"; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace penstock::launcher
