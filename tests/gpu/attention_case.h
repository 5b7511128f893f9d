// A random attention problem on the GPU, and its answer in double on the CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <utility>
#include <vector>

#include "kernels/cuda/attention.h"

namespace penstock::kernels::cuda {

// Memory on the device, freed with the object; test-only, so it aborts on errors.
template <typename T>
class DeviceArray {
 public:
  DeviceArray() = default;
  explicit DeviceArray(size_t count) : count_(count) { Check(cudaMalloc(&data_, Bytes())); }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) { Set(values); }
  DeviceArray(DeviceArray&& other) noexcept { *this = std::move(other); }
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  ~DeviceArray() { cudaFree(data_); }

  T* get() const { return data_; }
  size_t size() const { return count_; }
  void Set(const std::vector<T>& values) {
    Check(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> Get() const {
    std::vector<T> values(count_);
    Check(cudaMemcpy(values.data(), data_, Bytes(), cudaMemcpyDeviceToHost));
    return values;
  }
  void Fill(int byte) { Check(cudaMemset(data_, byte, Bytes())); }

 private:
  static void Check(cudaError_t error) {
    if (error != cudaSuccess) {
      std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
      std::abort();
    }
  }
  size_t Bytes() const { return count_ * sizeof(T); }
  T* data_ = nullptr;
  size_t count_ = 0;
};

struct RowShape {
  int context = 0;  // after the step
  int tokens = 1;   // of the step; rows of one token come first
};

struct CaseShape {
  int num_heads = 8;
  int num_kv_heads = 2;
  int head_size = 128;
  int page_size = 16;
  std::vector<RowShape> rows;
};

// Pages lie in random order; lines past a row's context, pages of no row, and the output are NaN,
// so whatever reads or leaves them is found.
class AttentionCase {
 public:
  AttentionCase(const CaseShape& shape, uint64_t seed);

  AttentionParams Params(const BatchRows* batch) const;
  const BatchRows& batch() const { return batch_; }
  const CaseShape& shape() const { return shape_; }
  AttentionConfig Config() const;
  // Takes part of the case: rows whose context and tokens are other ones within it (chunks of the
  // same prompt). The queries of row r are those at positions [context - tokens, context) of the
  // case's own.
  void SetRows(const std::vector<RowShape>& rows);

  // The largest relative error, ‖out - ref‖ / ‖ref‖, of any (token, head); infinite where anything
  // is NaN.
  double WorstError() const;
  std::vector<uint16_t> Output() const;
  void PoisonOutput() { out_.Fill(0xff); }

 private:
  std::vector<float> Reference(int row, int token, int head) const;

  CaseShape shape_;
  std::vector<RowShape> rows_;  // of the batch as it is
  std::vector<int32_t> slots_;
  std::vector<int32_t> page_table_;
  int64_t page_table_stride_ = 0;
  std::vector<float> q_by_position_;  // [rows][max queries][H * E]
  int max_queries_ = 0;
  std::vector<__nv_bfloat16> k_, v_;
  std::vector<int32_t> token_begin_, context_len_;
  DeviceArray<__nv_bfloat16> q_device_, k_device_, v_device_;
  DeviceArray<uint16_t> out_;
  DeviceArray<int32_t> token_begin_device_, context_device_, page_table_device_, slot_device_;
  BatchRows batch_;
};

}  // namespace penstock::kernels::cuda
