// What keeps a worker from starting on a GPU ends it with a reason and an exit code, never a crash.
#include <cuda_runtime.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>

#include "common/status.h"
#include "tests/gpu/model_device.h"
#include "tests/unit/worker/golden_engine.h"
#include "tests/unit/worker/hf_model.h"
#include "worker/worker.h"

namespace penstock::worker {
namespace {

using testing::AnyOf;
using testing::ContainsRegex;
using testing::HasSubstr;

class BadStart : public testing::Test {
 protected:
  // Starts a worker that is to end by itself; returns its exit code and leaves its reason.
  int Run(const std::vector<std::string>& flags) {
    const std::string engine = fmt::format("bad-start-{}", getpid());
    auto driver = PlanDriver::Create(engine, {});
    EXPECT_TRUE(driver.ok()) << driver.status();
    if (!driver.ok()) return -1;
    WorkerProcess worker = WorkerProcess::Start(engine, 0, flags);
    const absl::Status ready = (*driver)->WaitReady(60'000);
    EXPECT_FALSE(ready.ok()) << "it started";
    if (ready.ok() || absl::IsDeadlineExceeded(ready)) return -1;  // killed with the object
    const int code = worker.Wait();
    reason_ = (*driver)->segment().rank(0).error;
    fmt::print("exit code {}: {}\n", code, reason_);
    return code;
  }
  static std::vector<std::string> TinyFlags() {
    return {"--device=cuda", "--model=" + HfCheckpoint("tied")};
  }
  static bool OnGpu() { return TestDevice() == "cuda"; }

  std::string reason_;
};

// What is short of memory says which flag to change.
constexpr const char* kMemoryFlag =
    "--(gpu-memory-utilization|kv-cache-memory-mb|num-kv-pages|max-model-len|max-num-)";

TEST_F(BadStart, NoGpu) {
  setenv("CUDA_VISIBLE_DEVICES", "", 1);
  EXPECT_EQ(Run(TinyFlags()), kExitBadInput);
  unsetenv("CUDA_VISIBLE_DEVICES");
  EXPECT_THAT(reason_, HasSubstr("no GPU"));
}

TEST_F(BadStart, HeadSizeWithoutKernels) {
  if (!OnGpu()) GTEST_SKIP() << "needs a GPU";
  HfModel model;  // heads of 32
  EXPECT_EQ(Run({"--device=cuda", "--model=" + model.Write(), "--num-kv-pages=20"}), kExitBadInput);
  EXPECT_THAT(reason_, HasSubstr("head"));
}

TEST_F(BadStart, MoreKvPagesThanMemory) {
  if (!OnGpu()) GTEST_SKIP() << "needs a GPU";
  std::vector<std::string> flags = TinyFlags();
  flags.emplace_back("--num-kv-pages=1000000000");
  EXPECT_THAT(Run(flags), AnyOf(kExitError, kExitBadInput));
  EXPECT_THAT(reason_, ContainsRegex(kMemoryFlag));
  EXPECT_THAT(reason_, ContainsRegex("memory"));
}

// Another process, this one, has the memory.
TEST_F(BadStart, MemoryHeldByAnother) {
  if (!OnGpu()) GTEST_SKIP() << "needs a GPU";
  size_t free_bytes = 0, total = 0;
  ASSERT_EQ(cudaMemGetInfo(&free_bytes, &total), cudaSuccess);
  // Leaves what a context and cuBLAS take, and little more.
  constexpr size_t kLeft = size_t{2} << 30;
  ASSERT_GT(free_bytes, kLeft);
  void* held = nullptr;
  ASSERT_EQ(cudaMalloc(&held, free_bytes - kLeft), cudaSuccess);
  std::vector<std::string> flags = TinyFlags();
  flags.emplace_back("--num-kv-pages=400000");  // 6 GiB
  EXPECT_THAT(Run(flags), AnyOf(kExitError, kExitBadInput));
  EXPECT_THAT(reason_, ContainsRegex(kMemoryFlag));
  ASSERT_EQ(cudaFree(held), cudaSuccess);
}

}  // namespace
}  // namespace penstock::worker
