// Runs a GPU test program, or says that it can't.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  // To try the tests of the whole worker where no GPU is.
  const char* device = std::getenv("PENSTOCK_TEST_DEVICE");
  if (device != nullptr && std::string_view(device) != "cuda") return RUN_ALL_TESTS();
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    std::printf("skipped: no GPU here (%s)\n", cudaGetErrorString(error));
    return 0;
  }
  return RUN_ALL_TESTS();
}
