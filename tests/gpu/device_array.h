// Device memory of a test.
#pragma once

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

namespace penstock::kernels::cuda {

// A device error leaves nothing to test: says so and ends the program.
inline void MustBeOk(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::abort();
}

// Freed with the object. Copies wait for the device.
template <typename T>
class DeviceVector {
 public:
  explicit DeviceVector(size_t count) : count_(count) {
    MustBeOk(cudaMalloc(reinterpret_cast<void**>(&data_), Bytes() + 16), "cudaMalloc");
  }
  explicit DeviceVector(const std::vector<T>& values) : DeviceVector(values.size()) { Set(values); }
  DeviceVector(const DeviceVector&) = delete;
  DeviceVector& operator=(const DeviceVector&) = delete;
  ~DeviceVector() { cudaFree(data_); }

  T* get() const { return data_; }
  void Set(const std::vector<T>& values) {
    MustBeOk(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
             "copy to the device");
  }
  std::vector<T> Get() const {
    std::vector<T> values(count_);
    MustBeOk(cudaDeviceSynchronize(), "kernel");
    MustBeOk(cudaMemcpy(values.data(), data_, Bytes(), cudaMemcpyDeviceToHost),
             "copy from the device");
    return values;
  }

 private:
  size_t Bytes() const { return count_ * sizeof(T); }
  T* data_ = nullptr;
  size_t count_;
};

}  // namespace penstock::kernels::cuda
