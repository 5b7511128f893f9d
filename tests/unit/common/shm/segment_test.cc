// Segments made, taken over, refused; presence and death of real processes.
#include "common/shm/segment.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <thread>

#include "common/log.h"

namespace penstock::shm {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kSecond = 1'000'000'000;

class SegmentTest : public ::testing::Test {
 protected:
  void TearDown() override {
    for (pid_t child : children_) Kill(child);
    EXPECT_TRUE(Segment::Remove(id_).ok());
  }

  absl::StatusOr<std::unique_ptr<Segment>> Create() {
    return Segment::CreateOrAdopt(id_, geometry_);
  }
  absl::StatusOr<std::unique_ptr<Segment>> Attach(int rank) {
    return Segment::Attach(id_, rank, MonotonicNs() + 10 * kSecond);
  }

  // A process that calls body() and then lives until it is killed; returns once body() is over.
  pid_t Start(const std::function<void()>& body) {
    int done[2];
    CHECK(pipe(done) == 0);
    const pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
      body();
      CHECK(write(done[1], "x", 1) == 1);
      pause();
      _exit(0);
    }
    close(done[1]);
    char byte = 0;
    CHECK(read(done[0], &byte, 1) == 1);
    close(done[0]);
    children_.push_back(pid);
    return pid;
  }
  void Kill(pid_t pid) {
    std::erase(children_, pid);
    kill(pid, SIGKILL);
    CHECK(waitpid(pid, nullptr, 0) == pid);
  }
  // A scheduler that keeps the segment, as another process.
  pid_t StartSchedulerThatKeepsIt() {
    return Start([this] { CHECK(Create()->release() != nullptr); });
  }
  pid_t StartRank(int rank) {
    return Start([=, this] { CHECK(Attach(rank)->release() != nullptr); });
  }
  void Overwrite(off_t offset, uint32_t value) {
    const int fd = open(Segment::Path(id_).c_str(), O_RDWR);
    ASSERT_EQ(pwrite(fd, &value, sizeof(value), offset), static_cast<ssize_t>(sizeof(value)));
    close(fd);
  }

  const std::string id_ = fmt::format("segment-test-{}", getpid());
  Geometry geometry_{.num_ranks = 2,
                     .num_slots = 8,
                     .plan_ring_bytes = 4096,
                     .result_ring_bytes = 8192,
                     .arena_bytes = 10'000,
                     .collective_bytes = 4096};
  std::vector<pid_t> children_;
};

TEST_F(SegmentTest, PartsAreDisjointZeroedAndSeenByAll) {
  const auto made = Create();
  ASSERT_TRUE(made.ok()) << made.status();
  const auto attached = Attach(1);
  ASSERT_TRUE(attached.ok()) << attached.status();
  EXPECT_FALSE((*made)->adopted());
  EXPECT_EQ((*attached)->geometry(), geometry_);
  EXPECT_STREQ((*attached)->header().engine_id, id_.c_str());

  struct Part {
    std::byte* data;
    size_t bytes;
  };
  auto parts = [&](const Segment& segment) {
    auto of = [](std::span<std::byte> span) { return Part{span.data(), span.size()}; };
    std::vector<Part> all;
    for (uint32_t i = 0; i < 8; ++i) {
      all.push_back({reinterpret_cast<std::byte*>(&segment.slot(i)), sizeof(RequestSlot)});
    }
    for (int rank : {0, 1}) {
      all.push_back({reinterpret_cast<std::byte*>(&segment.rank(rank)), sizeof(RankArea)});
    }
    all.push_back(of(segment.plan_ring()));
    for (int rank : {0, 1}) all.push_back(of(segment.result_ring(rank)));
    all.push_back(of(segment.arena()));
    for (int rank : {0, 1}) all.push_back(of(segment.collective_buffer(rank)));
    return all;
  };
  const auto ours = parts(**made), theirs = parts(**attached);
  for (size_t i = 0; i < ours.size(); ++i) {
    for (size_t k = 0; k < ours[i].bytes; ++k) ASSERT_EQ(ours[i].data[k], std::byte{0});
    std::fill_n(ours[i].data, ours[i].bytes, static_cast<std::byte>(i + 1));
  }
  for (size_t i = 0; i < theirs.size(); ++i) {
    for (size_t k = 0; k < theirs[i].bytes; ++k) {
      ASSERT_EQ(theirs[i].data[k], static_cast<std::byte>(i + 1));
    }
  }
  EXPECT_EQ((*made)->header().magic, kMagic);
}

TEST_F(SegmentTest, BadNamesAndGeometriesAreRefused) {
  for (const char* id : {"", "a/b", "..//x", "with space"}) {
    EXPECT_EQ(Segment::CreateOrAdopt(id, geometry_).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_FALSE(Segment::CreateOrAdopt(std::string(70, 'x'), geometry_).ok());
  for (auto change :
       {+[](Geometry* g) { g->num_ranks = 0; }, +[](Geometry* g) { g->num_ranks = 65; },
        +[](Geometry* g) { g->num_slots = 0; }, +[](Geometry* g) { g->plan_ring_bytes = 5000; },
        +[](Geometry* g) { g->result_ring_bytes = 1024; }}) {
    Geometry bad = geometry_;
    change(&bad);
    EXPECT_EQ(Segment::CreateOrAdopt(id_, bad).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(SegmentTest, AttachingWaitsForTheSegment) {
  std::thread maker([this] {
    usleep(20'000);  // most likely after Attach has begun to wait; right either way
    const pid_t keeper = StartSchedulerThatKeepsIt();
    (void)keeper;
  });
  EXPECT_TRUE(Attach(0).ok());
  maker.join();
}

TEST_F(SegmentTest, AttachingGivesUpAtItsDeadline) {
  const auto attached = Segment::Attach(id_, 0, MonotonicNs() + kSecond / 50);
  EXPECT_EQ(attached.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(Message(attached.status()), HasSubstr(id_));
}

TEST_F(SegmentTest, ARankThatIsTakenOrUnknownIsRefused) {
  StartSchedulerThatKeepsIt();
  StartRank(0);
  const auto taken = Attach(0);
  EXPECT_EQ(taken.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(taken.status()), HasSubstr("already runs"));
  EXPECT_EQ(Attach(2).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_TRUE(Attach(1).ok());
}

TEST_F(SegmentTest, ASecondSchedulerIsRefused) {
  StartSchedulerThatKeepsIt();
  const auto second = Create();
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(second.status()), HasSubstr("another scheduler"));
}

TEST_F(SegmentTest, AnotherLayoutVersionIsRefusedWithBothNamed) {
  StartSchedulerThatKeepsIt();
  Overwrite(offsetof(SegmentHeader, layout_version), 77);
  const auto attached = Attach(0);
  EXPECT_EQ(attached.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(attached.status()), HasSubstr("layout version 77"));
  EXPECT_THAT(Message(attached.status()), HasSubstr(std::to_string(kLayoutVersion)));
}

TEST_F(SegmentTest, AnotherBuildsStructSizesAreRefused) {
  StartSchedulerThatKeepsIt();
  Overwrite(offsetof(SegmentHeader, slot_bytes), 8);
  EXPECT_THAT(Message(Attach(0).status()), HasSubstr("another build"));
  Overwrite(offsetof(SegmentHeader, slot_bytes), sizeof(RequestSlot));
  EXPECT_TRUE(Attach(0).ok());
  ASSERT_EQ(truncate(Segment::Path(id_).c_str(), 5000), 0);
  EXPECT_THAT(Message(Attach(0).status()), HasSubstr("not as long as it says"));
  Overwrite(0, 0);
  EXPECT_THAT(Message(Attach(0).status()), HasSubstr("not a Penstock segment"));
}

TEST_F(SegmentTest, ADeadSchedulersSegmentIsTakenOverWithItsRanks) {
  const pid_t scheduler = Start([this] {
    const Segment* segment = Create()->release();
    segment->header().epoch.store(41);
  });
  StartRank(1);
  Kill(scheduler);
  const auto adopted = Create();
  ASSERT_TRUE(adopted.ok()) << adopted.status();
  EXPECT_TRUE((*adopted)->adopted());
  EXPECT_EQ((*adopted)->header().epoch.load(), 41u);
  EXPECT_TRUE((*adopted)->RankIsAlive(1));
  EXPECT_FALSE((*adopted)->RankIsAlive(0));
}

TEST_F(SegmentTest, OtherSettingsAreRefusedWhileRanksLive) {
  const pid_t scheduler = StartSchedulerThatKeepsIt();
  const pid_t rank = StartRank(0);
  Kill(scheduler);
  geometry_.num_slots = 16;
  const auto refused = Create();
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(refused.status()), HasSubstr("asked for 2 and 16"));
  Kill(rank);
  const auto made = Create();
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_FALSE((*made)->adopted());
  EXPECT_EQ((*made)->geometry().num_slots, 16u);
}

TEST_F(SegmentTest, DeathOfARankIsToldAtOnce) {
  const auto segment = Create();
  ASSERT_TRUE(segment.ok());
  (*segment)->WaitForRankDeath(0);  // nobody is there: returns
  for (int life = 0; life < 5; ++life) {
    const pid_t rank = StartRank(0);
    EXPECT_TRUE((*segment)->RankIsAlive(0));
    std::atomic<bool> told{false};
    std::thread watcher([&] {
      (*segment)->WaitForRankDeath(0);
      told = true;
    });
    EXPECT_FALSE(told);
    Kill(rank);
    watcher.join();
    EXPECT_FALSE((*segment)->RankIsAlive(0));
  }
}

TEST_F(SegmentTest, WatchersDoNotStandInANewRanksWay) {
  const auto segment = Create();
  ASSERT_TRUE(segment.ok());
  std::atomic<bool> stop{false};
  std::vector<std::thread> watchers;  // each has a read lock again and again, for a moment
  watchers.reserve(2);
  for (int i = 0; i < 2; ++i) {
    watchers.emplace_back([&] {
      while (!stop) (*segment)->WaitForRankDeath(0);
    });
  }
  for (int i = 0; i < 200; ++i) EXPECT_TRUE(Attach(0).ok());
  stop = true;
  for (std::thread& watcher : watchers) watcher.join();
}

TEST_F(SegmentTest, TooLittleSharedMemoryIsSaidSo) {
  // Both are told by the same refusal of memory: more than the machine has, and, where a mount
  // namespace can be had, more than a /dev/shm of 4 MiB, as a container may have.
  geometry_.arena_bytes = uint64_t{1} << 50;
  const auto refused = Create();
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(refused.status()), HasSubstr("--shm-size"));
  EXPECT_NE(access(Segment::Path(id_).c_str(), F_OK), 0);
  EXPECT_NE(access((Segment::Path(id_) + ".new").c_str(), F_OK), 0);

  geometry_.arena_bytes = 8 << 20;
  const pid_t child = fork();
  if (child == 0) {
    if (unshare(CLONE_NEWNS) != 0 ||
        mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        mount("none", "/dev/shm", "tmpfs", 0, "size=4m") != 0) {
      _exit(77);
    }
    const absl::Status status = Create().status();
    std::printf("%s\n", Message(status).c_str());
    const bool right = status.code() == absl::StatusCode::kResourceExhausted &&
                       Message(status).find("needs 8 MiB in /dev/shm but 4 MiB are free") == 11;
    _exit(right ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  if (WEXITSTATUS(status) == 77) GTEST_SKIP() << "a mount namespace takes more rights";
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace penstock::shm
