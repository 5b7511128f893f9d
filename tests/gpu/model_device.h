// Which device the tests of the whole worker run on.
#pragma once

#include <string>
#include <vector>

namespace penstock::worker {

// $PENSTOCK_TEST_DEVICE: cuda, or cpu to try the tests themselves where no GPU is.
std::string TestDevice();
// The worker's flags for it, then those of $PENSTOCK_TEST_WORKER_FLAGS, with spaces between them:
// --enforce-eager, for example. Last `more`.
std::vector<std::string> DeviceFlags(const std::vector<std::string>& more);
// The worker's flags for the CPU in float32.
std::vector<std::string> ReferenceFlags(const std::vector<std::string>& more);

}  // namespace penstock::worker
