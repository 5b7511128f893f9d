// penstock-worker as a process, driven over a real segment by a test that plays the scheduler.
#include "worker/worker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "common/status.h"
#include "tests/unit/worker/plan_driver.h"
#include "tests/unit/worker/tiny_model.h"
#include "tests/unit/worker/worker_process.h"

namespace penstock::worker {
namespace {

using testing::HasSubstr;

constexpr int64_t kTimeoutMs = 120'000;

class WorkerTest : public testing::Test {
 protected:
  void MakeDriver(int num_ranks) {
    shm::Geometry geometry;
    geometry.num_ranks = static_cast<uint32_t>(num_ranks);
    geometry.num_slots = 32;
    if (num_ranks > 1) geometry.collective_bytes = 64 << 10;
    auto driver = PlanDriver::Create(engine_, geometry);
    ASSERT_TRUE(driver.ok()) << driver.status();
    driver_ = *std::move(driver);
  }
  void StartRanks(const std::vector<std::string>& flags) {
    for (int rank = 0; rank < driver_->num_ranks(); ++rank) {
      workers_.push_back(WorkerProcess::Start(engine_, rank, flags));
    }
  }
  void Start(int num_ranks, const std::vector<std::string>& flags) {
    MakeDriver(num_ranks);
    StartRanks(flags);
    const absl::Status ready = driver_->WaitReady(kTimeoutMs);
    ASSERT_TRUE(ready.ok()) << ready;
    ASSERT_TRUE(driver_->Reset().ok());
  }
  void Stop() {
    workers_.clear();
    driver_.reset();
  }
  std::string WaitForError(int rank) {
    const shm::RankArea& area = driver_->segment().rank(rank);
    EXPECT_EQ(area.state.load(), static_cast<uint32_t>(shm::RankState::kFailed));
    return area.error;
  }

  const std::string engine_ = fmt::format("worker-test-{}", getpid());
  std::unique_ptr<PlanDriver> driver_;
  std::vector<WorkerProcess> workers_;
};

std::vector<std::string> TinyFlags(const std::string& path, const std::string& dtype) {
  return {"--model=" + path, "--dtype=" + dtype, "--threads=1", "--num-kv-pages=200",
          "--max-num-batched-tokens=96"};
}

DriverRequest RandomRequest(int length, int vocab, uint64_t seed, float temperature) {
  DriverRequest request;
  uint64_t state = seed;
  for (int i = 0; i < length; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    request.ids.push_back(static_cast<int32_t>((state >> 33) % static_cast<uint64_t>(vocab)));
  }
  request.sampling = GreedySampling();
  request.sampling.temperature = temperature;
  request.sampling.seed = seed;
  return request;
}

// Prompt log-probabilities of `ids` through the worker, in chunks; [i] is of ids[i + 1].
std::vector<float> PromptLogprobs(PlanDriver* driver, const std::vector<int32_t>& ids, int chunk) {
  DriverRequest request;
  request.ids = ids;
  request.sampling = GreedySampling();
  request.sampling.num_prompt_logprobs = 0;
  const int size = static_cast<int>(ids.size());
  const uint32_t slot = driver->Add(request, size);
  std::vector<float> logprobs;
  for (int begin = 0; begin < size; begin += chunk) {
    const auto n = static_cast<uint32_t>(std::min(chunk, size - begin));
    const auto result =
        driver->Step({{slot, static_cast<uint32_t>(begin), n, shm::kRowPromptLogprobs}});
    EXPECT_TRUE(result.ok()) << result.status();
    if (!result.ok()) return {};
    for (const StepResult::Row& row : result->rows) {
      EXPECT_EQ(row.row.is_prompt, 1u);
      EXPECT_EQ(row.row.position, static_cast<int32_t>(logprobs.size() + 1));
      EXPECT_EQ(row.row.token_id, ids[row.row.position]);
      logprobs.push_back(row.row.logprob);
    }
  }
  driver->Release(slot);
  EXPECT_TRUE(driver->Step({}).ok());
  EXPECT_EQ(logprobs.size(), ids.size() - 1);
  return logprobs;
}

void ExpectNear(const std::vector<float>& got, const std::vector<std::vector<double>>& want,
                const std::vector<int32_t>& ids, double tolerance) {
  ASSERT_EQ(got.size() + 1, ids.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_NEAR(got[i], want[i][ids[i + 1]], tolerance) << "position " << i;
  }
}

struct DecoderCase {
  const char* name;
  TinyConfig config;
};

class WorkerModelTest : public WorkerTest, public testing::WithParamInterface<DecoderCase> {};

TEST_P(WorkerModelTest, LogProbabilitiesAreTheModels) {
  TinyModel model(GetParam().config);
  const std::string& path = model.WriteFile();
  const DriverRequest request = RandomRequest(50, GetParam().config.vocab, 3, 0);
  const auto want = model.LogProbs(request.ids);
  Start(1, TinyFlags(path, "float32"));
  ExpectNear(PromptLogprobs(driver_.get(), request.ids, 64), want, request.ids, 2e-4);
  ExpectNear(PromptLogprobs(driver_.get(), request.ids, 7), want, request.ids, 2e-4);
  Stop();
  Start(1, TinyFlags(path, "auto"));
  ExpectNear(PromptLogprobs(driver_.get(), request.ids, 64), want, request.ids, 0.15);
}

INSTANTIATE_TEST_SUITE_P(
    Models, WorkerModelTest,
    testing::Values(DecoderCase{"plain", {}}, DecoderCase{"q8_0", {.q8_0 = true}},
                    DecoderCase{"untied_with_biases", {.tied = false, .biases = true}},
                    DecoderCase{"rope_factors_part_rotary", {.rotary = 16, .rope_factors = true}},
                    DecoderCase{"one_kv_head", {.heads = 4, .kv_heads = 1}}),
    [](const auto& info) { return info.param.name; });

struct Sampled {
  std::vector<std::vector<int32_t>> ids;
  std::vector<float> logprobs;
  bool operator==(const Sampled& other) const {
    return ids == other.ids && logprobs.size() == other.logprobs.size() &&
           std::memcmp(logprobs.data(), other.logprobs.data(), logprobs.size() * 4) == 0;
  }
};

// In float32 mode an id's bits do not depend on what it is computed with.
TEST_F(WorkerTest, Float32IsTheSameInAnyBatchChunkingAndNumberOfRanks) {
  TinyModel model(
      {.layers = 3, .heads = 4, .kv_heads = 4, .vocab = 96, .biases = true, .q8_0 = true});
  const std::string& path = model.WriteFile();
  std::vector<DriverRequest> requests;
  requests.reserve(16);
  for (int i = 0; i < 16; ++i) {
    requests.push_back(RandomRequest(5 + 3 * i, 96, 100 + i, i % 2 == 0 ? 0.0f : 0.9f));
  }
  std::vector<std::vector<int32_t>> first_ids;
  std::vector<float> first_logprobs;
  for (const int ranks : {1, 2, 4}) {
    SCOPED_TRACE(ranks);
    Start(ranks, TinyFlags(path, "float32"));
    if (testing::Test::HasFatalFailure()) return;
    std::vector<std::vector<int32_t>> alone;
    for (const DriverRequest& request : requests) {
      const auto ids = Generate(driver_.get(), {request}, 12, 64);
      ASSERT_TRUE(ids.ok()) << ids.status();
      alone.push_back((*ids)[0]);
    }
    for (const int chunk : {1, 6}) {
      const auto together = Generate(driver_.get(), requests, 12, chunk);
      ASSERT_TRUE(together.ok()) << together.status();
      EXPECT_EQ(*together, alone) << "chunk " << chunk;
    }
    const std::vector<float> whole = PromptLogprobs(driver_.get(), requests[15].ids, 96);
    const std::vector<float> single = PromptLogprobs(driver_.get(), requests[15].ids, 1);
    ASSERT_EQ(std::memcmp(whole.data(), single.data(), whole.size() * sizeof(float)), 0);
    if (first_ids.empty()) {
      first_ids = alone;
      first_logprobs = whole;
    }
    EXPECT_EQ(alone, first_ids);
    EXPECT_EQ(std::memcmp(whole.data(), first_logprobs.data(), whole.size() * sizeof(float)), 0);
    Stop();
  }
}

TEST_F(WorkerTest, StepsInFlightAreExactAndAReleasedSlotIsFree) {
  TinyModel model({});
  Start(1, TinyFlags(model.WriteFile(), "float32"));
  const DriverRequest request = RandomRequest(9, 96, 5, 0.8f);
  const auto want = Generate(driver_.get(), {request}, 20, 64);
  ASSERT_TRUE(want.ok()) << want.status();
  // The same with all steps planned before the first result is read.
  const uint32_t slot = driver_->Add(request, 40);
  driver_->Submit({{slot, 0, 9, shm::kRowSample}});
  for (uint32_t i = 0; i < 19; ++i) driver_->Submit({{slot, 9 + i, 1, shm::kRowSample}});
  std::vector<int32_t> ids;
  for (int i = 0; i < 20; ++i) {
    const auto result = driver_->Result(0);
    ASSERT_TRUE(result.ok()) << result.status();
    ids.push_back(result->rows[0].row.token_id);
  }
  EXPECT_EQ(ids, (*want)[0]);
  // And resumed after a preemption: outputs so far are known ids.
  driver_->Release(slot);
  DriverRequest resumed = request;
  resumed.prompt_len = 9;
  resumed.ids.insert(resumed.ids.end(), ids.begin(), ids.begin() + 10);
  const auto rest = Generate(driver_.get(), {resumed}, 10, 5);
  ASSERT_TRUE(rest.ok()) << rest.status();
  EXPECT_EQ((*rest)[0], std::vector<int32_t>(ids.begin() + 10, ids.end()));
}

TEST_F(WorkerTest, TopLogprobsComeWithSampledIds) {
  TinyModel model({});
  Start(1, TinyFlags(model.WriteFile(), "float32"));
  DriverRequest request = RandomRequest(9, 96, 5, 0);
  request.sampling.num_top_logprobs = 4;
  const auto want = model.LogProbs(request.ids);
  const uint32_t slot = driver_->Add(request, 20);
  const auto result = driver_->Step({{slot, 0, 9, shm::kRowSample}});
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(result->rows.size(), 1u);
  const StepResult::Row& row = result->rows[0];
  EXPECT_EQ(row.row.rank, 1);
  ASSERT_EQ(row.top.size(), 4u);
  EXPECT_EQ(row.top[0].token_id, row.row.token_id);
  for (const shm::ResultTop& top : row.top) {
    EXPECT_NEAR(top.logprob, want[8][top.token_id], 2e-4);
  }
  EXPECT_GE(result->header.end_ns, result->header.begin_ns);
  EXPECT_GE(result->header.begin_ns, result->header.plan_ns);
}

TEST_F(WorkerTest, FewPagesLowerTheLongestRequestUnlessItWasAskedFor) {
  TinyModel model({.context = 128});
  const std::string& path = model.WriteFile();
  Start(1, {"--model=" + path, "--threads=1", "--num-kv-pages=5"});
  EXPECT_EQ(driver_->segment().rank(0).max_model_len.load(), 80u);
  EXPECT_EQ(driver_->segment().rank(0).num_pages.load(), 5u);
  EXPECT_EQ(driver_->segment().rank(0).load_progress.load(), 1.0f);
  Stop();
  MakeDriver(1);
  StartRanks({"--model=" + path, "--threads=1", "--num-kv-pages=5", "--max-model-len=128"});
  EXPECT_EQ(workers_[0].Wait(), kExitBadInput);
  EXPECT_THAT(WaitForError(0), HasSubstr("--kv-cache-memory-mb"));
}

TEST_F(WorkerTest, TermEndsItCleanlyAtAnyTime) {
  TinyModel model({});
  Start(1, TinyFlags(model.WriteFile(), "auto"));
  workers_[0].Signal(SIGTERM);
  EXPECT_EQ(workers_[0].Wait(), kExitOk);
  Stop();
  // Without a segment, too.
  WorkerProcess waiting = WorkerProcess::Start("no-such-engine", 0, {"--device=null"});
  waiting.Signal(SIGTERM);
  const int code = waiting.Wait();
  EXPECT_TRUE(code == kExitOk || code == 128 + SIGTERM) << code;  // before its handler is set
}

TEST_F(WorkerTest, BadModelsAndFlagsExitWithTwo) {
  const std::string dir = std::filesystem::temp_directory_path();
  const std::string cut = fmt::format("{}/cut-{}.gguf", dir, getpid());
  TinyModel model({});
  const std::string bytes = model.Build();
  std::ofstream(cut, std::ios::binary) << bytes.substr(0, bytes.size() / 2);
  struct Case {
    std::vector<std::string> flags;
    const char* error;
  };
  for (const Case& c : std::vector<Case>{{{"--model=/no/such/file.gguf"}, "/no/such/file.gguf"},
                                         {{"--model=" + cut}, "cut-"},
                                         {{"--model=/etc/passwd"}, "/etc/passwd"}}) {
    SCOPED_TRACE(c.flags[0]);
    MakeDriver(1);
    StartRanks(c.flags);
    EXPECT_EQ(workers_[0].Wait(), kExitBadInput);
    EXPECT_THAT(WaitForError(0), HasSubstr(c.error));
    Stop();
  }
  std::filesystem::remove(cut);
  WorkerProcess flags = WorkerProcess::Start(engine_, 0, {"--device=abacus"});
  EXPECT_EQ(flags.Wait(), kExitBadInput);
  WorkerProcess absent =
      WorkerProcess::Start("no-such-engine", 0, {"--device=null", "--attach_timeout_s=0"});
  EXPECT_EQ(absent.Wait(), kExitError);
}

TEST_F(WorkerTest, RanksThatDoNotDivideAreRefused) {
  TinyModel model({.heads = 4, .kv_heads = 2});
  MakeDriver(3);
  StartRanks(TinyFlags(model.WriteFile(), "auto"));
  for (int rank = 0; rank < 3; ++rank) EXPECT_EQ(workers_[rank].Wait(), kExitBadInput);
  EXPECT_THAT(WaitForError(2), HasSubstr("sizes that work: 1, 2"));
}

TEST_F(WorkerTest, APlanThatCannotBeRightEndsItLoudly) {
  TinyModel model({});
  Start(1, TinyFlags(model.WriteFile(), "auto"));
  driver_->Submit({{7, 0, 1, 0}});
  EXPECT_EQ(workers_[0].Wait(), kExitError);
  EXPECT_THAT(WaitForError(0), HasSubstr("slot 7"));
}

TEST_F(WorkerTest, RanksOfADeadPeerExitWithThree) {
  TinyModel model({.heads = 4, .kv_heads = 4});
  Start(2, TinyFlags(model.WriteFile(), "auto"));
  workers_[1].Signal(SIGKILL);
  EXPECT_EQ(workers_[1].Wait(), 128 + SIGKILL);
  const uint32_t slot = driver_->Add(RandomRequest(9, 96, 5, 0), 20);
  driver_->Submit({{slot, 0, 9, shm::kRowSample}});
  EXPECT_EQ(workers_[0].Wait(), kExitPeerDied);
  EXPECT_THAT(WaitForError(0), HasSubstr("rank 1 died"));
}

// A scheduler that dies and comes anew: the worker keeps its weights and goes on in a new epoch.
TEST_F(WorkerTest, ANewSchedulerGoesOnWithTheSameWorker) {
  TinyModel model({});
  Start(1, TinyFlags(model.WriteFile(), "float32"));
  const DriverRequest request = RandomRequest(9, 96, 5, 0);
  const auto want = Generate(driver_.get(), {request}, 10, 64);
  ASSERT_TRUE(want.ok()) << want.status();
  const uint64_t incarnation = driver_->segment().rank(0).incarnation.load();
  // It dies with a step in flight.
  const uint32_t slot = driver_->Add(request, 30);
  driver_->Submit({{slot, 0, 9, shm::kRowSample}});
  const shm::Geometry geometry = driver_->segment().geometry();
  const std::string keep = shm::Segment::Path(engine_) + ".keep";
  std::filesystem::create_hard_link(shm::Segment::Path(engine_), keep);
  driver_.reset();  // takes the name away, as a dead scheduler would not
  std::filesystem::rename(keep, shm::Segment::Path(engine_));
  auto driver = PlanDriver::Create(engine_, geometry);
  ASSERT_TRUE(driver.ok()) << driver.status();
  driver_ = *std::move(driver);
  ASSERT_TRUE(driver_->Reset().ok());
  EXPECT_EQ(driver_->segment().rank(0).incarnation.load(), incarnation);
  const auto again = Generate(driver_.get(), {request}, 10, 64);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(*again, *want);
}

// A worker that dies and comes anew: what was planned for the dead one is not its business.
TEST_F(WorkerTest, ANewWorkerWaitsForItsOwnEpoch) {
  TinyModel model({});
  const std::vector<std::string> flags = TinyFlags(model.WriteFile(), "float32");
  Start(1, flags);
  const DriverRequest request = RandomRequest(9, 96, 5, 0);
  const auto want = Generate(driver_.get(), {request}, 10, 64);
  ASSERT_TRUE(want.ok()) << want.status();
  workers_[0].Signal(SIGKILL);
  workers_[0].Wait();
  const uint64_t dead = driver_->segment().rank(0).incarnation.load();
  workers_.clear();
  StartRanks(flags);
  shm::RankArea& area = driver_->segment().rank(0);
  while (area.incarnation.load() == dead ||
         area.state.load() != static_cast<uint32_t>(shm::RankState::kReady)) {
    const uint32_t seen = driver_->segment().header().scheduler_event.Current();
    if (area.incarnation.load() != dead &&
        area.state.load() == static_cast<uint32_t>(shm::RankState::kReady)) {
      break;
    }
    ASSERT_TRUE(driver_->segment().header().scheduler_event.Wait(
        seen, shm::MonotonicNs() + kTimeoutMs * 1'000'000));
  }
  EXPECT_EQ(area.acked_epoch.load(), 0u);
  ASSERT_TRUE(driver_->Reset().ok());
  const auto again = Generate(driver_.get(), {request}, 10, 64);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(*again, *want);
}

}  // namespace
}  // namespace penstock::worker
