// penstock-worker over Hugging Face checkpoints: random weights, and how a bad checkpoint ends it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "common/status.h"
#include "tests/unit/worker/hf_model.h"
#include "tests/unit/worker/plan_driver.h"
#include "tests/unit/worker/worker_process.h"
#include "worker/worker.h"

namespace penstock::worker {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class HfWorkerTest : public testing::Test {
 protected:
  void Start(int num_ranks, const std::vector<std::string>& flags) {
    workers_.clear();
    driver_.reset();
    shm::Geometry geometry;
    geometry.num_ranks = static_cast<uint32_t>(num_ranks);
    geometry.num_slots = 8;
    if (num_ranks > 1) geometry.collective_bytes = 1 << 20;
    const std::string engine = fmt::format("hf-worker-test-{}", getpid());
    auto driver = PlanDriver::Create(engine, geometry);
    ASSERT_TRUE(driver.ok()) << driver.status();
    driver_ = *std::move(driver);
    for (int rank = 0; rank < num_ranks; ++rank) {
      workers_.push_back(WorkerProcess::Start(engine, rank, flags));
    }
  }
  // A request's ids with random weights made from `folder`.
  std::vector<int32_t> GenerateDummy(const std::string& folder, int num_ranks,
                                     const std::string& device) {
    Start(num_ranks, {"--model=" + folder, "--load-format=dummy", "--device=" + device,
                      "--threads=1", "--num-kv-pages=20"});
    absl::Status ready = driver_->WaitReady(60'000);
    if (ready.ok()) ready = driver_->Reset();
    EXPECT_TRUE(ready.ok()) << ready;
    if (!ready.ok()) return {};
    DriverRequest request;
    request.ids = {1, 2, 3, 4, 5};
    request.sampling = GreedySampling();
    const auto ids = Generate(driver_.get(), {request}, 8, 4);
    EXPECT_TRUE(ids.ok()) << ids.status();
    return ids.ok() ? (*ids)[0] : std::vector<int32_t>();
  }
  // The worker must end with the exit code for bad input and leave `reason` on record.
  void ExpectBadInput(const std::string& folder, const std::string& reason) {
    Start(1, {"--model=" + folder, "--threads=1", "--num-kv-pages=20"});
    EXPECT_EQ(workers_[0].Wait(), kExitBadInput);
    EXPECT_THAT(std::string(driver_->segment().rank(0).error),
                AllOf(HasSubstr(folder), HasSubstr(reason)));
  }

  std::unique_ptr<PlanDriver> driver_;
  std::vector<WorkerProcess> workers_;
};

TEST_F(HfWorkerTest, DummyWeightsNeedTheConfigAlone) {
  HfModel model;
  model.config["tie_word_embeddings"] = true;
  const std::string folder = model.WriteConfig();
  const auto ids = GenerateDummy(folder, 1, "cpu");
  EXPECT_EQ(ids.size(), 8u);
  EXPECT_EQ(GenerateDummy(folder, 1, "cpu"), ids) << "the weights are seeded";
  EXPECT_EQ(GenerateDummy(folder, 2, "cpu").size(), 8u);
  EXPECT_EQ(GenerateDummy(folder, 1, "null").size(), 8u);
}

TEST_F(HfWorkerTest, BadCheckpointsEndItWithAReason) {
  HfModel model;
  ExpectBadInput(model.WriteConfig(), "--load-format=dummy");
  const std::string folder = model.Write();
  const std::string weights = folder + "/model.safetensors";
  std::filesystem::resize_file(weights, std::filesystem::file_size(weights) - 2);
  ExpectBadInput(folder, "cut short");
  std::ofstream(weights, std::ios::binary | std::ios::trunc) << std::string(8, '\x7f');
  ExpectBadInput(folder, "claims a header of");
  model.tensors["lm_head.weight"].shape = {95, 64};
  ExpectBadInput(model.Write(), "lm_head.weight is [95, 64]");
  model.config["architectures"] = {"MambaForCausalLM"};
  ExpectBadInput(model.Write(), "\"MambaForCausalLM\" is not supported");
  model.config["architectures"] = {"LlamaForCausalLM"};
  model.config["rope_scaling"] = {{"rope_type", "longrope"}};
  ExpectBadInput(model.Write(), "\"longrope\" is not supported");
}

}  // namespace
}  // namespace penstock::worker
