// The command lines of router, scheduler and worker: Abseil's flags, as a user spells them.
#pragma once

#include <vector>

namespace penstock {

// Parses the flags of the program, spelt with dashes or underscores, and returns the other
// arguments, argv[0] first. --help prints `usage` and the flags that the program's main.cc defines;
// it and a wrong flag end the process. Writes into argv's strings. Call it once, before any thread.
std::vector<char*> ParseFlags(const char* usage, int argc, char** argv);

}  // namespace penstock
