// The scheduler's threads under TSan: the engine loop, its receiver, its death watchers, a scrape
// of the metrics, and ranks and routers as threads of this process. Ranks are seen through the
// scheduler's own mapping in the first test, so that TSan follows plans and results too.
#include <gtest/gtest.h>
#include <prometheus/registry.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "common/log.h"
#include "scheduler/engine_loop.h"
#include "scheduler/worker_link.h"
#include "tests/unit/scheduler/router_client.h"
#include "tests/unit/scheduler/segment_rank.h"

// Debian's libzmq is not instrumented: TSan sees what its threads touch but not how they agree on
// it. Messages it hands over look like races with its own threads; ours among each other still
// show.
// NOLINTBEGIN(bugprone-reserved-identifier): the name is TSan's.
extern "C" const char* __tsan_default_suppressions();
extern "C" const char* __tsan_default_suppressions() { return "called_from_lib:libzmq.so.5\n"; }
// NOLINTEND(bugprone-reserved-identifier)

namespace penstock::scheduler {
namespace {

TEST(WorkerLinkThreadsTest, PlansAndResultsBetweenThreads) {
  const std::string id = fmt::format("link-threads-{}", getpid());
  const shm::Geometry geometry =
      WorkerLink::SizeRings({.num_ranks = 2, .num_slots = 4, .arena_bytes = 4096}, 256);
  const std::shared_ptr<shm::Segment> segment = shm::Segment::CreateOrAdopt(id, geometry).value();
  WorkerLink link(segment);
  SegmentRank first(segment.get(), id, 0), second(segment.get(), id, 1);
  std::vector<std::thread> ranks;
  for (SegmentRank* rank : {&first, &second}) {
    rank->SetReady();
    ranks.emplace_back([rank] { rank->Run(); });
  }
  shm::Event& event = segment->header().scheduler_event;
  auto wait_for = [&](auto condition) {
    while (true) {
      const uint32_t seen = event.Current();
      if (condition()) return;
      event.Wait(seen, shm::kNoDeadline);
    }
  };
  wait_for([&] { return link.Poll() == WorkerLink::Change::kServing; });
  PlanRecord record;
  uint64_t completed = 0;
  for (uint64_t step = 1; step <= 20'000; ++step) {
    // Every fourth step another request takes the slot, with other ids in the arena.
    const auto position = static_cast<uint32_t>(3 + (step - 1) % 4);
    record.Clear();
    if (position == 3) {
      wait_for([&] {  // as the quarantine would
        while (link.NextResult(completed + 1) != nullptr) {
          link.Consume();
          ++completed;
        }
        return completed + 1 == step;
      });
      shm::RequestSlot& slot = segment->slot(0);
      if (step > 1) record.releases.push_back({0, slot.generation});
      slot.generation += 1;
      slot.prompt_len = slot.known_len = 3;
      slot.sampling.seed = step;
      std::fill_n(segment->arena().data(), 12, static_cast<std::byte>(step));
      record.binds.push_back({0, slot.generation});
    }
    record.rows.push_back(
        {0, position == 3 ? 0 : position - 1, position == 3 ? 3u : 1u, shm::kRowSample});
    wait_for([&] {
      while (link.NextResult(completed + 1) != nullptr) {
        link.Consume();
        ++completed;
      }
      return step - completed <= 2;
    });
    link.Publish(step, record);
  }
  first.Stop();
  second.Stop();
  for (std::thread& rank : ranks) rank.join();
  EXPECT_TRUE(shm::Segment::Remove(id).ok());
}

class EngineThreadsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    EngineOptions options;
    options.engine_id = id_;
    options.listen = address_;
    options.check_invariants = true;
    options.log_requests = false;
    options.max_num_seqs = 16;
    loop_ = EngineLoop::Create(options, &metrics_).value();
    engine_ = std::thread([this] { loop_->Run(); });
    StartRank();
    scraper_ = std::thread([this] {
      while (!stop_scraper_) registry_.Collect();
    });
  }
  void TearDown() override {
    loop_->Stop();
    engine_.join();
    StopRank();
    stop_scraper_ = true;
    scraper_.join();
    loop_.reset();
    for (const char* suffix : {"", ".deltas"}) unlink((socket_ + suffix).c_str());
  }
  void StartRank() {
    rank_ = std::make_unique<SegmentRank>(nullptr, id_, 0);
    rank_->SetReady();
    rank_thread_ = std::thread([this] { rank_->Run(); });
  }
  void StopRank() {
    rank_->Stop();
    rank_thread_.join();
    rank_.reset();
  }

  const std::string id_ = fmt::format("engine-threads-{}", getpid());
  const std::string socket_ = "/tmp/penstock-" + id_;
  const std::string address_ = "ipc://" + socket_;
  prometheus::Registry registry_;
  Metrics metrics_ = Metrics::Make(registry_, "model", id_);
  std::unique_ptr<EngineLoop> loop_;
  std::unique_ptr<SegmentRank> rank_;
  std::thread engine_, rank_thread_, scraper_;
  std::atomic<bool> stop_scraper_{false};
};

TEST_F(EngineThreadsTest, RoutersComeAndGoRanksDieAndStreamsAreWhole) {
  constexpr int kRouters = 3, kStreams = 30;
  std::vector<std::thread> routers;
  std::atomic<int> num_whole{0};
  std::atomic<int> num_begun{0};
  routers.reserve(kRouters);
  for (int r = 0; r < kRouters; ++r) {
    routers.emplace_back([&, r] {
      zmq::context_t context;
      RouterClient client(context, address_, fmt::format("router-{}", r));
      CHECK(client.WaitReady());
      for (int id = 1; id <= kStreams; ++id) {
        client.Submit(RouterClient::MakeSubmit(id, 1 + id, 50 + id));
        if (id % 5 == 0) client.Cancel({static_cast<uint64_t>(id - 2)});
      }
      CHECK(client.PumpUntil([&] { return client.streams[1].outputs.size() > 10; }));
      ++num_begun;
      CHECK(client.PumpUntil([&] { return client.AllEnded(); }, 120'000));
      for (const auto& [id, stream] : client.streams) {
        bool right = stream.end == wire::END_LENGTH && stream.outputs.size() == 50 + id;
        for (size_t i = 0; i < stream.outputs.size(); ++i) {
          right = right &&
                  stream.outputs[i] == SegmentRank::IdAt(id, static_cast<uint32_t>(1 + id + i));
        }
        num_whole += right;
      }
      if (r == 0) client.Goodbye();
    });
  }
  while (num_begun < 1) std::this_thread::yield();
  StopRank();
  StartRank();
  for (std::thread& router : routers) router.join();
  EXPECT_EQ(num_whole, kRouters * (kStreams - kStreams / 5));
}

}  // namespace
}  // namespace penstock::scheduler
