// Runs a GPU test program, or says that it can't.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdio>

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    std::printf("skipped: no GPU here (%s)\n", cudaGetErrorString(error));
    return 0;
  }
  return RUN_ALL_TESTS();
}
