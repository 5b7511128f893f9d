// The launcher's command line: one table of flags per command, from which parsing, --help and the
// children's arguments all follow.
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"

namespace penstock::launcher {

// Which processes a flag is passed on to, as a bit set.
enum Role : unsigned { kLauncher = 0, kRouter = 1, kScheduler = 2, kWorker = 4 };

struct Flag {
  std::string_view name;   // "max-num-seqs"
  std::string_view value;  // what --help calls the value; empty: a switch
  std::string_view usual;  // its default as text; empty: the process's own, and nothing is passed
                           // on unless it is given
  unsigned roles = kLauncher;
  std::string_view help;
  std::string_view passed_as = {};  // the children's name for it where that differs
};

struct CommandLine {
  std::map<std::string, std::string, std::less<>> values;  // given or default; switches are "true"
  std::vector<std::string> positional;

  bool Has(std::string_view name) const { return values.find(name) != values.end(); }
  std::string Get(std::string_view name) const;  // empty if absent
};

// Parses --name value, --name=value and switches. INVALID_ARGUMENT for what it does not know, with
// the nearest name.
absl::StatusOr<CommandLine> Parse(std::span<const Flag> flags, std::span<char* const> args);

// The arguments for one role.
std::vector<std::string> ArgumentsFor(unsigned role, std::span<const Flag> flags,
                                      const CommandLine& line);

// The flags as --help shows them.
std::string Describe(std::span<const Flag> flags);

}  // namespace penstock::launcher
