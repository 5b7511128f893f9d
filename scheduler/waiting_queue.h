// The requests that wait, and whose turn it is. Pure; does not own them; not thread-safe.
//
// Turns go by, in this order:
// 1. Class (Request::priority): the lower number first. So that no class starves, one that
//    kMaxPassed admissions of lower numbers have passed by has the next.
// 2. Within a class those who were admitted before (preempted, or their ranks died), oldest first.
// 3. Tenants: the one that has been served least, by weight. Service is counted in tokens, one of a
//    prompt as kPromptCost, one sampled as kOutputCost. Who comes with nothing waiting brings a
//    credit of at most kCredit from before: his count is lifted to so much below the least of those
//    who wait. ("Fairness in Serving Large Language Models", Sheng et al., 2024, for these virtual
//    token counters and their weights. It gives no credit; but then a tenant that asks for less
//    than its share stands no better than one that floods.)
// 4. Within a tenant the order of arrival.
//
// Add, Remove: O(1), but for the lift, O(tenants that wait). A turn: O(log tenants).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "scheduler/request.h"

namespace penstock::scheduler {

// A tenant's requests of one class that wait, and what it has been served there.
struct Tenant {
  double weight = 1;
  double served = 0;  // tokens by their cost / weight
  double base = 0;    // the same without credit, as of when it last came with nothing waiting
  Request *first = nullptr, *last = nullptr;
  uint32_t num_waiting = 0;
  uint32_t num_requests = 0;  // that point here, waiting or not
  bool is_listed = false;     // in one of its class's two heaps

  // Lately: cost, decaying by 1/e in kMemory of the class's. `recent` is what `lately` lacks.
  double* class_served = nullptr;
  double lately = 0, recent = 0;
  double lately_at = 0;  // *class_served

  // As of the turns that are being walked through.
  Request* next = nullptr;  // whose turn would be next; null: there is none left
  double foreseen = 0;      // `served`, with those who had theirs
};

class WaitingQueue {
 public:
  static constexpr uint32_t kNumClasses = 10;
  static constexpr uint32_t kMaxPassed = 64;
  static constexpr double kPromptCost = 1, kOutputCost = 2;
  static constexpr double kCredit = 500'000;    // cost: about 250 chats' worth
  static constexpr double kMemory = 2'000'000;  // cost: how far back IsOverShare looks
  static constexpr double kSlack = 1.25;        // a share wavers by so much
  // Tenants kept for their count though they have no requests; about.
  static constexpr size_t kMaxIdleTenants = 4096;

  WaitingQueue() = default;
  WaitingQueue(const WaitingQueue&) = delete;
  WaitingQueue& operator=(const WaitingQueue&) = delete;

  // Of a tenant that is not named: 1. Before any request of it.
  void SetWeights(absl::flat_hash_map<std::string, double> weights) {
    weights_ = std::move(weights);
  }

  // A new request. It belongs to its tenant until Forget.
  void Add(Request* request);
  // One that has been admitted before waits again, in its old place.
  void Return(Request* request);
  // Takes out one that waits: it leaves, or Admit does.
  void Remove(Request* request);
  // The request is no more. It must not wait.
  void Forget(Request* request);

  size_t size() const { return size_; }
  // Those of classes 0 .. priority: who goes before a new request of that class.
  size_t NumAhead(uint32_t priority) const;
  // Whether a class that is to hold `limit` requests has no room for one more of this tenant. When
  // it is full, those still find room who have less than an equal share of it: nobody can fill it
  // up for the others.
  bool IsFull(uint32_t priority, const std::string& tenant, size_t limit) const;
  // In no order.
  std::vector<Request*> All() const;

  // Walks through the turns as they would be if each had been admitted: Begin, then Next until it
  // is null or one has seen enough. Add, Return and Remove end the walk.
  void BeginTurns();
  Request* NextTurn();

  // Whether the request's tenant has been served more than kSlack times its share of its class
  // lately: by weight, among the tenants that have requests there.
  bool IsOverShare(const Request& request) const;

  // Takes out the one whose turn it is, or one behind those who were held back; counts it.
  // `num_tokens` of its prompt are to be computed.
  void Admit(Request* request, uint32_t num_tokens);
  // `num_tokens` will be sampled for a request that runs.
  static void Serve(Request* request, uint32_t num_tokens) {
    Charge(request->tenant_queue, num_tokens * kOutputCost);
  }

  // Ends the process if something does not hold. O(all).
  void CheckInvariants() const;

 private:
  struct Entry {  // `key` is at most what the tenant has been served
    double key;
    uint64_t order;  // of its first request: for equal keys
    Tenant* tenant;
    bool operator<(const Entry& other) const {  // for heaps: their front is the least
      return key != other.key ? key > other.key : order > other.order;
    }
  };
  struct Class {
    absl::btree_map<uint64_t, Request*> returned;  // by order
    absl::flat_hash_map<std::string, std::unique_ptr<Tenant>> tenants;
    std::vector<Entry> waiting;  // heap; tenants that wait, and some that did
    std::vector<Entry> walked;   // heap by Tenant::foreseen; those who have had a turn in this walk
    size_t num_waiting = 0;      // with those in `returned`
    uint32_t num_tenants = 0;    // that wait
    double served = 0;           // cost, of all its tenants
    double active_weight = 0;    // of the tenants that have requests
    uint32_t num_active = 0;
    uint32_t num_passed = 0;                   // admissions of lower numbers since one of its own
    size_t max_tenants = 2 * kMaxIdleTenants;  // above that idle ones are dropped
    double floor = 0;  // what the tenant whose turn was last had been served
    // Of the walk:
    size_t num_turns = 0;
    uint32_t num_foreseen_passed = 0;
    absl::btree_map<uint64_t, Request*>::const_iterator next_returned;
  };

  static void Charge(Tenant* tenant, double cost) {
    tenant->served += cost / tenant->weight;
    tenant->recent += cost;
    *tenant->class_served += cost;
  }
  Class& ClassOf(const Request& request) { return classes_[request.priority]; }
  Tenant& TenantOf(Class& of, const std::string& name);
  double LeastServed(const Class& of) const;
  static void List(Class& of, Tenant* tenant);
  static Request* NextOf(Class& of);
  static Request* NextOfTenants(Class& of);
  void DropIdleTenants(Class& of);

  std::array<Class, kNumClasses> classes_;
  absl::flat_hash_map<std::string, double> weights_;
  size_t size_ = 0;
};

}  // namespace penstock::scheduler
