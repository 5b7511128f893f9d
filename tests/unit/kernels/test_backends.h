// The backends that the op tests run on, and the memory a test's tensors live in.
#pragma once

#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/ops.h"

namespace penstock::kernels {

// A way to run ops. Add a device here and every op test runs on it.
struct TestBackend {
  std::string name;
  cpu::Isa isa = cpu::Isa::kSse2;
  int threads = 1;

  std::unique_ptr<Backend> Make(int max_tokens = 2048, int vocab_size = 64) const {
    auto backend =
        cpu::MakeCpuBackend({.mode = cpu::Mode::kFloat32, .threads = threads, .isa = isa});
    const absl::Status status = backend->Reserve({.max_tokens = max_tokens,
                                                  .max_rows = 64,
                                                  .max_logits = 64,
                                                  .max_width = 512,
                                                  .vocab_size = vocab_size});
    EXPECT_TRUE(status.ok()) << status;
    return backend;
  }
};

inline std::vector<TestBackend> TestBackends() {
  std::vector<TestBackend> backends;
  for (const cpu::Isa isa : cpu::AvailableIsas()) {
    backends.push_back({std::string(cpu::IsaName(isa)), isa, 1});
  }
  backends.push_back({backends.back().name + "_2threads", cpu::BestIsa(), 2});
  return backends;
}

inline void PrintTo(const TestBackend& backend, std::ostream* out) { *out << backend.name; }

inline std::vector<float> RandomFloats(size_t count, std::mt19937* random, float deviation = 1) {
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> values(count);
  for (float& value : values) value = normal(*random);
  return values;
}

}  // namespace penstock::kernels
