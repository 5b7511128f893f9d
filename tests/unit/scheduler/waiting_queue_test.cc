#include "scheduler/waiting_queue.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <deque>
#include <map>
#include <random>

#include "common/log.h"
#include "scheduler/drain_rate.h"

namespace penstock::scheduler {
namespace {

class WaitingQueueTest : public ::testing::Test {
 protected:
  Request* Make(const std::string& tenant, uint8_t priority = 0, uint32_t prompt_len = 10) {
    Request& request = requests_.emplace_back();
    request.order = ++last_order_;
    request.tenant = tenant;
    request.priority = priority;
    request.prompt_len = prompt_len;
    request.ids.resize(prompt_len);
    return &request;
  }
  Request* Add(const std::string& tenant, uint8_t priority = 0, uint32_t prompt_len = 10) {
    Request* request = Make(tenant, priority, prompt_len);
    queue_.Add(request);
    return request;
  }
  Request* AdmitNext() {
    queue_.BeginTurns();
    Request* request = queue_.NextTurn();
    if (request != nullptr) queue_.Admit(request, static_cast<uint32_t>(request->ids.size()));
    queue_.CheckInvariants();
    return request;
  }
  void Leave(Request* request) { queue_.Forget(request); }
  // Tenants of the next n turns, as they are foreseen; then as they come.
  std::string Turns(int n) {
    std::string foreseen, real;
    queue_.BeginTurns();
    for (int i = 0; i < n; ++i) foreseen += queue_.NextTurn()->tenant;
    for (int i = 0; i < n; ++i) real += AdmitNext()->tenant;
    EXPECT_EQ(foreseen, real);
    return real;
  }

  std::deque<Request> requests_;
  uint64_t last_order_ = 0;
  WaitingQueue queue_;
};

TEST_F(WaitingQueueTest, OneTenantIsServedInOrder) {
  Request* a = Add("");
  Request* b = Add("");
  Request* c = Add("");
  EXPECT_EQ(queue_.size(), 3u);
  queue_.BeginTurns();
  EXPECT_EQ(queue_.NextTurn(), a);
  EXPECT_EQ(queue_.NextTurn(), b);
  EXPECT_EQ(queue_.NextTurn(), c);
  EXPECT_EQ(queue_.NextTurn(), nullptr);
  queue_.Remove(b);
  queue_.CheckInvariants();
  EXPECT_EQ(AdmitNext(), a);
  EXPECT_EQ(AdmitNext(), c);
  EXPECT_EQ(AdmitNext(), nullptr);
  EXPECT_EQ(queue_.size(), 0u);
}

TEST_F(WaitingQueueTest, TheLowerClassNumberGoesFirst) {
  Add("c", 2);
  Add("b", 1);
  Add("a", 0);
  Add("a", 0);
  EXPECT_EQ(queue_.NumAhead(0), 2u);
  EXPECT_EQ(queue_.NumAhead(1), 3u);
  EXPECT_EQ(queue_.NumAhead(9), 4u);
  EXPECT_EQ(Turns(4), "aabc");
}

TEST_F(WaitingQueueTest, AClassThatIsPassedByGetsATurn) {
  Request* low = Add("low", 5);
  for (uint32_t i = 0; i < 2 * WaitingQueue::kMaxPassed; ++i) Add("high", 0);
  for (uint32_t i = 0; i < WaitingQueue::kMaxPassed; ++i) EXPECT_EQ(AdmitNext()->priority, 0);
  EXPECT_EQ(AdmitNext(), low);
  EXPECT_EQ(AdmitNext()->priority, 0);
}

TEST_F(WaitingQueueTest, WhoComesBackGoesFirstInHisClass) {
  Request* a = Add("t", 1);
  Request* b = Add("t", 1);
  Add("u", 1);
  EXPECT_EQ(AdmitNext(), a);
  EXPECT_EQ(AdmitNext()->tenant, "u");  // t has been served
  EXPECT_EQ(AdmitNext(), b);
  Request* c = Add("v", 1);
  queue_.Return(b);
  queue_.Return(a);
  queue_.CheckInvariants();
  EXPECT_EQ(AdmitNext(), a);
  EXPECT_EQ(AdmitNext(), b);
  EXPECT_EQ(AdmitNext(), c);
}

TEST_F(WaitingQueueTest, TenantsTakeTurnsByTokens) {
  for (int i = 0; i < 8; ++i) Add("a", 0, 10);
  for (int i = 0; i < 4; ++i) Add("b", 0, 20);
  // 10 ids of a count 10, 20 of b count 20; who came first goes first where counts are equal.
  EXPECT_EQ(Turns(9), "abaabaaba");
}

TEST_F(WaitingQueueTest, SampledTokensCountDouble) {
  Request* a = Add("a", 0, 10);
  Add("b", 0, 10);
  EXPECT_EQ(AdmitNext(), a);
  for (int i = 0; i < 100; ++i) WaitingQueue::Serve(a, 1);
  EXPECT_EQ(AdmitNext()->tenant, "b");
  for (int i = 0; i < 30; ++i) {
    Add("a", 0, 10);
    Add("b", 0, 10);
  }
  // a: 10 + 200; b, 10, has 20 of its own before it is a's turn.
  EXPECT_EQ(Turns(22), std::string(20, 'b') + "ab");
}

TEST_F(WaitingQueueTest, WeightsAreShares) {
  queue_.SetWeights({{"a", 3.0}});
  for (int i = 0; i < 300; ++i) Add("a");
  for (int i = 0; i < 300; ++i) Add("b");
  const std::string turns = Turns(200);
  EXPECT_EQ(std::count(turns.begin(), turns.end(), 'a'), 150);
}

TEST_F(WaitingQueueTest, IdleTimeIsALimitedCredit) {
  Add("a");
  Request* a = AdmitNext();
  WaitingQueue::Serve(a, 10'000'000);
  for (int i = 0; i < 20; ++i) Add("a", 0, 100'000);
  for (int i = 0; i < 20; ++i) Add("b", 0, 100'000);  // was away meanwhile
  EXPECT_EQ(Turns(14), "bbbbbababababa");
}

TEST_F(WaitingQueueTest, CreditIsNotHandedOn) {
  Add("a");
  Request* a = AdmitNext();
  WaitingQueue::Serve(a, 10'000'000);
  Add("a", 0, 100'000);
  for (char name = 'b'; name <= 'z'; ++name) Add(std::string(1, name), 0, 1000);
  // All came while the one before them waited; none gets ahead of those.
  EXPECT_EQ(Turns(25), "bcdefghijklmnopqrstuvwxyz");
}

TEST_F(WaitingQueueTest, TellsWhoIsOverHisShare) {
  Request* a = Add("a");
  queue_.Admit(a, 10);
  WaitingQueue::Serve(a, 1'000'000);
  EXPECT_FALSE(queue_.IsOverShare(*a)) << "nobody else is there";
  Request* b = Add("b");
  EXPECT_TRUE(queue_.IsOverShare(*a));
  EXPECT_FALSE(queue_.IsOverShare(*b));
  queue_.Admit(b, 10);
  Leave(b);
  EXPECT_FALSE(queue_.IsOverShare(*a));
  b = Add("b");
  queue_.Admit(b, 10);
  WaitingQueue::Serve(b, 2'000'000);  // what a had is forgotten by and by
  EXPECT_FALSE(queue_.IsOverShare(*a));
  EXPECT_TRUE(queue_.IsOverShare(*b));
  queue_.CheckInvariants();
}

TEST_F(WaitingQueueTest, LeavingDoesNotForgiveADebt) {
  Add("b");
  for (int i = 0; i < 10; ++i)
    Leave(([&] {
      Request* a = Add("a", 0, 100);
      queue_.Admit(a, 100);
      return a;
    })());
  Add("a", 0, 100);
  for (int i = 0; i < 20; ++i) Add("b");
  EXPECT_EQ(Turns(20), std::string(20, 'b'));
}

TEST_F(WaitingQueueTest, AFullQueueKeepsRoomForOtherTenants) {
  for (int i = 0; i < 10; ++i) {
    EXPECT_FALSE(queue_.IsFull(3, "a", 10));
    Add("a", 3);
  }
  EXPECT_TRUE(queue_.IsFull(3, "a", 10));
  EXPECT_FALSE(queue_.IsFull(4, "a", 10)) << "each class has its own room";
  for (int i = 0; i < 5; ++i) {
    EXPECT_FALSE(queue_.IsFull(3, "b", 10)) << "an equal share is 5";
    Add("b", 3);
  }
  EXPECT_TRUE(queue_.IsFull(3, "b", 10));
  EXPECT_FALSE(queue_.IsFull(3, "c", 10));
  EXPECT_TRUE(queue_.IsFull(3, "c", 0));
}

// Against a plain model: all turns by going through all that wait.
TEST_F(WaitingQueueTest, RandomTracesAgreeWithAPlainModel) {
  const auto seed = std::random_device()();
  std::printf("seed %u\n", seed);
  std::mt19937 random(seed);
  struct Count {
    double served = 0, base = 0;
    int waiting = 0;
  };
  std::map<std::pair<int, std::string>, Count> counts;
  std::array<double, 3> floors = {};
  std::array<uint32_t, 3> passed = {};
  std::vector<Request*> waiting, running;
  const auto count_of = [&](const Request* request) -> Count& {
    return counts[{request->priority, request->tenant}];
  };
  const auto leave_queue = [&](Request* request) {
    std::erase(waiting, request);
    if (request->num_preemptions == 0) --count_of(request).waiting;
    if (std::none_of(waiting.begin(), waiting.end(),
                     [&](Request* other) { return other->priority == request->priority; })) {
      passed[request->priority] = 0;
    }
  };
  uint64_t num_admitted = 0;
  for (int step = 0; step < 100'000; ++step) {
    const uint32_t dice = random() % 100;
    if (dice < 40 && waiting.size() < 100) {
      // Prompts of lengths of which no two sums are equal by chance: no ties.
      Request* request = Make(std::string(1, static_cast<char>('a' + random() % 5)),
                              static_cast<uint8_t>(random() % 3), 1 + random() % 100);
      Count& count = count_of(request);
      if (count.waiting++ == 0) {
        double least = -1;
        for (const auto& [key, other] : counts) {
          if (key.first != request->priority || other.waiting == 0 || &other == &count) continue;
          const double served = std::max(other.served, other.base);
          if (least < 0 || served < least) least = served;
        }
        count.base = least < 0 ? floors[request->priority] : least;
        count.served = std::max(count.served, count.base - WaitingQueue::kCredit);
        count.served += 1e-9 * random();  // no ties
        queue_.Add(request);
        request->tenant_queue->served = count.served;
      } else {
        queue_.Add(request);
      }
      waiting.push_back(request);
    } else if (dice < 45 && !waiting.empty()) {
      Request* request = waiting[random() % waiting.size()];
      leave_queue(request);
      queue_.Remove(request);
      queue_.Forget(request);
    } else if (dice < 75 && !running.empty()) {
      Request* request = running[random() % running.size()];
      WaitingQueue::Serve(request, 1);
      count_of(request).served += 2;
    } else if (dice < 80 && !running.empty()) {
      std::swap(running[random() % running.size()], running.back());
      Request* request = running.back();
      running.pop_back();
      if (dice == 79) {
        ++request->num_preemptions;
        queue_.Return(request);
        waiting.push_back(request);
      } else {
        queue_.Forget(request);
      }
    } else if (!waiting.empty() && running.size() < 50) {
      int turn = -1;
      for (int c = 0; c < 3; ++c) {
        const bool any = std::any_of(waiting.begin(), waiting.end(),
                                     [&](Request* request) { return request->priority == c; });
        if (any && (turn < 0 || passed[c] >= WaitingQueue::kMaxPassed)) turn = c;
      }
      Request* next = nullptr;
      const auto before = [&](Request* x, Request* y) {
        if ((x->num_preemptions > 0) != (y->num_preemptions > 0)) return x->num_preemptions > 0;
        if (x->num_preemptions > 0 || x->tenant == y->tenant) return x->order < y->order;
        return count_of(x).served < count_of(y).served;
      };
      for (Request* request : waiting) {
        if (request->priority != turn) continue;
        if (next == nullptr || before(request, next)) next = request;
      }
      queue_.BeginTurns();
      ASSERT_EQ(queue_.NextTurn(), next) << "step " << step;
      for (uint32_t more = random() % 5; more > 0; --more) queue_.NextTurn();
      leave_queue(next);
      passed[turn] = 0;
      for (int c = turn + 1; c < 3; ++c) {
        passed[c] += std::any_of(waiting.begin(), waiting.end(),
                                 [&](Request* request) { return request->priority == c; });
      }
      if (next->num_preemptions == 0) {
        Count& count = count_of(next);
        floors[turn] = std::max(floors[turn], count.served);
        count.served += next->prompt_len;
      }
      queue_.Admit(next, next->prompt_len);
      running.push_back(next);
      ++num_admitted;
    }
    ASSERT_EQ(queue_.size(), waiting.size());
    if (step % 16 == 0) queue_.CheckInvariants();
  }
  EXPECT_GT(num_admitted, 3000u);
}

TEST(DrainRateTest, SaysWhenThoseAheadWillBeIn) {
  DrainRate rate;
  EXPECT_EQ(rate.SecondsFor(1000), 1u);
  double now_s = 100;
  rate.Observe(0, 50, now_s);
  for (int i = 0; i < 1000; ++i) rate.Observe(1, 50, now_s += 0.05);  // 20 a second
  EXPECT_EQ(rate.SecondsFor(1), 1u);
  EXPECT_NEAR(rate.SecondsFor(200), 10, 1);
  EXPECT_EQ(rate.SecondsFor(1'000'000), DrainRate::kMostS);
  // Nobody waits for a while: that few come says nothing.
  rate.Observe(0, 0, now_s += 0.05);
  for (int i = 0; i < 100'000; ++i) rate.Observe(10, 0, now_s += 0.01);
  EXPECT_NEAR(rate.SecondsFor(200), 10, 1);
  // It becomes slower.
  rate.Observe(0, 50, now_s);
  for (int i = 0; i < 400; ++i) rate.Observe(1, 50, now_s += 0.2);
  EXPECT_NEAR(rate.SecondsFor(200), 40, 2);
}

}  // namespace
}  // namespace penstock::scheduler
