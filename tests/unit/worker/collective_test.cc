// Collectives between real processes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

#include "tests/unit/worker/collective_rank.h"

namespace penstock::worker {
namespace {

using testing::HasSubstr;

class CollectiveTest : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    engine_ = fmt::format("collective-{}", getpid());
    auto segment = shm::Segment::CreateOrAdopt(engine_, CollectiveGeometry(GetParam()));
    ASSERT_TRUE(segment.ok()) << segment.status();
    segment_ = *std::move(segment);
  }
  void TearDown() override { EXPECT_TRUE(shm::Segment::Remove(engine_).ok()); }

  pid_t Fork(const std::function<absl::Status()>& body) {
    const pid_t pid = fork();
    if (pid != 0) return pid;
    const absl::Status status = body();
    if (!status.ok()) fmt::print(stderr, "{}\n", Message(status));
    _exit(status.ok() ? 0 : 1);
  }
  static int Wait(pid_t pid) {
    int status = 0;
    EXPECT_EQ(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

  std::string engine_;
  std::unique_ptr<shm::Segment> segment_;
};

TEST_P(CollectiveTest, EveryRankGetsTheSameBits) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::vector<pid_t> pids;
  pids.reserve(GetParam());
  for (int rank = 0; rank < GetParam(); ++rank) {
    pids.push_back(Fork([&] { return RunCollectives(engine_, rank, seed, 3, 100); }));
  }
  for (const pid_t pid : pids) EXPECT_EQ(Wait(pid), 0);
}

TEST_P(CollectiveTest, DeadPeerAborts) {
  const pid_t dead = Fork([&] { return RunCollectives(engine_, 1, 7, 1, 10); });
  const pid_t alive = Fork([&]() -> absl::Status {
    const absl::Status status = RunCollectives(engine_, 0, 7, 1, 20);
    if (status.code() != absl::StatusCode::kAborted) return Internal("got {}", Message(status));
    return absl::OkStatus();
  });
  std::vector<pid_t> others;
  for (int rank = 2; rank < GetParam(); ++rank) {
    others.push_back(Fork([&] { return RunCollectives(engine_, rank, 7, 1, 10); }));
  }
  EXPECT_EQ(Wait(dead), 0);
  EXPECT_EQ(Wait(alive), 0);
  for (const pid_t pid : others) EXPECT_EQ(Wait(pid), 0);
}

TEST_P(CollectiveTest, PeerThatWasStartedAnewAborts) {
  auto us = shm::Segment::Attach(engine_, 0, shm::MonotonicNs());
  auto peer = shm::Segment::Attach(engine_, 1, shm::MonotonicNs());
  ASSERT_TRUE(us.ok() && peer.ok());
  const auto group = ShmCollective::Create(us->get(), 0, 0);
  ASSERT_TRUE(group.ok());
  for (int rank = 1; rank < GetParam(); ++rank) {
    (*us)->rank(rank).collective_sequence.store(uint64_t{1} << 40);
  }
  (*us)->rank(1).plan_cursor.store(64);  // it began after the plan that ends at 64
  (*group)->Reset(1);
  (*group)->BeginPlan(64);
  float x = 1;
  const absl::Status status = (*group)->AllReduceSum(&x, 1, 1, &x);
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(Message(status), HasSubstr("started anew"));
}

INSTANTIATE_TEST_SUITE_P(Ranks, CollectiveTest, testing::Values(2, 3, 5),
                         testing::PrintToStringParamName());

}  // namespace
}  // namespace penstock::worker
