// The ways of admission that the simulator compares.
#pragma once

#include <span>
#include <string>

#include "tools/bench/simulate/engine.h"

namespace penstock::simulate {

struct PolicySpec {
  std::string name;
  std::string about;
  SetUp set_up;
};

std::span<const PolicySpec> Policies();

}  // namespace penstock::simulate
