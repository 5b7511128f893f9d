#include "tests/gpu/model_device.h"

#include <cstdlib>
#include <sstream>

namespace penstock::worker {
namespace {

std::string Variable(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : otherwise;
}

std::vector<std::string> Join(std::vector<std::string> flags,
                              const std::vector<std::string>& more) {
  flags.insert(flags.end(), more.begin(), more.end());
  return flags;
}

}  // namespace

std::string TestDevice() { return Variable("PENSTOCK_TEST_DEVICE", "cuda"); }

std::vector<std::string> DeviceFlags(const std::vector<std::string>& more) {
  if (TestDevice() == "cpu") return ReferenceFlags(more);
  std::vector<std::string> flags = {"--device=" + TestDevice()};
  std::istringstream given(Variable("PENSTOCK_TEST_WORKER_FLAGS", ""));
  for (std::string flag; given >> flag;) flags.push_back(flag);
  return Join(std::move(flags), more);
}

std::vector<std::string> ReferenceFlags(const std::vector<std::string>& more) {
  return Join({"--device=cpu", "--dtype=float32"}, more);
}

}  // namespace penstock::worker
