#include "scheduler/waiting_queue.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/log.h"

namespace penstock::scheduler {

Tenant& WaitingQueue::TenantOf(Class& of, const std::string& name) {
  std::unique_ptr<Tenant>& tenant = of.tenants[name];
  if (tenant == nullptr) {
    tenant = std::make_unique<Tenant>();
    const auto weight = weights_.find(name);
    if (weight != weights_.end()) tenant->weight = weight->second;
    tenant->class_served = &of.served;
    tenant->lately_at = of.served;
  }
  return *tenant;
}

double WaitingQueue::LeastServed(const Class& of) const {
  double least = -1;
  for (const auto* heap : {&of.waiting, &of.walked}) {
    for (const Entry& entry : *heap) {
      if (entry.tenant->num_waiting == 0) continue;
      // Without credit, or those who come would hand it on, each a little ahead of the last.
      const double served = std::max(entry.tenant->served, entry.tenant->base);
      if (least < 0 || served < least) least = served;
    }
  }
  return least < 0 ? of.floor : least;
}

// Puts a tenant that waits among those who do.
void WaitingQueue::List(Class& of, Tenant* tenant) {
  tenant->is_listed = true;
  tenant->next = tenant->first;
  of.waiting.push_back({tenant->served, tenant->first->order, tenant});
  std::push_heap(of.waiting.begin(), of.waiting.end());
}

void WaitingQueue::Add(Request* request) {
  Class& of = ClassOf(*request);
  if (of.tenants.size() > of.max_tenants) DropIdleTenants(of);
  Tenant& tenant = TenantOf(of, request->tenant);
  request->tenant_queue = &tenant;
  if (tenant.num_requests++ == 0) {
    of.active_weight += tenant.weight;
    ++of.num_active;
  }
  request->previous_waiting = tenant.last;
  request->next_waiting = nullptr;
  (tenant.last == nullptr ? tenant.first : tenant.last->next_waiting) = request;
  tenant.last = request;
  ++of.num_waiting;
  ++size_;
  if (tenant.num_waiting > 0) {
    ++tenant.num_waiting;
    return;
  }
  tenant.base = LeastServed(of);
  tenant.served = std::max(tenant.served, tenant.base - kCredit / tenant.weight);
  tenant.num_waiting = 1;
  ++of.num_tenants;
  if (!tenant.is_listed) List(of, &tenant);
}

void WaitingQueue::Return(Request* request) {
  Class& of = ClassOf(*request);
  of.returned.emplace(request->order, request);
  ++of.num_waiting;
  ++size_;
}

void WaitingQueue::Remove(Request* request) {
  Class& of = ClassOf(*request);
  if (--of.num_waiting == 0) of.num_passed = 0;
  --size_;
  if (of.returned.erase(request->order) > 0) return;
  Tenant& tenant = *request->tenant_queue;
  (request->previous_waiting == nullptr ? tenant.first : request->previous_waiting->next_waiting) =
      request->next_waiting;
  (request->next_waiting == nullptr ? tenant.last : request->next_waiting->previous_waiting) =
      request->previous_waiting;
  if (tenant.next == request) tenant.next = request->next_waiting;
  request->previous_waiting = request->next_waiting = nullptr;
  if (--tenant.num_waiting == 0) --of.num_tenants;
}

void WaitingQueue::Forget(Request* request) {
  Tenant& tenant = *request->tenant_queue;
  request->tenant_queue = nullptr;
  if (--tenant.num_requests > 0) return;
  Class& of = ClassOf(*request);
  of.active_weight = --of.num_active == 0 ? 0 : of.active_weight - tenant.weight;
}

bool WaitingQueue::IsOverShare(const Request& request) const {
  const Class& of = classes_[request.priority];
  if (of.num_active <= 1) return false;
  Tenant& tenant = *request.tenant_queue;
  tenant.lately *= std::exp((tenant.lately_at - of.served) / kMemory);
  tenant.lately += std::exchange(tenant.recent, 0);
  tenant.lately_at = of.served;
  // All tenants together: kMemory.
  return tenant.lately * of.active_weight > kSlack * tenant.weight * kMemory;
}

size_t WaitingQueue::NumAhead(uint32_t priority) const {
  size_t sum = 0;
  for (uint32_t i = 0; i <= priority; ++i) sum += classes_[i].num_waiting;
  return sum;
}

bool WaitingQueue::IsFull(uint32_t priority, const std::string& tenant, size_t limit) const {
  const Class& of = classes_[priority];
  if (of.num_waiting < limit) return false;
  const auto found = of.tenants.find(tenant);
  const size_t has = found == of.tenants.end() ? 0 : found->second->num_waiting;
  return has >= limit / (of.num_tenants + (has == 0));
}

std::vector<Request*> WaitingQueue::All() const {
  std::vector<Request*> all;
  all.reserve(size_);
  for (const Class& of : classes_) {
    for (const auto& [order, request] : of.returned) all.push_back(request);
    for (const auto& [name, tenant] : of.tenants) {
      for (Request* request = tenant->first; request != nullptr; request = request->next_waiting) {
        all.push_back(request);
      }
    }
  }
  return all;
}

void WaitingQueue::BeginTurns() {
  for (Class& of : classes_) {
    for (const Entry& entry : of.walked) {
      entry.tenant->is_listed = false;
      if (entry.tenant->num_waiting > 0) List(of, entry.tenant);
    }
    of.walked.clear();
    of.num_turns = 0;
    of.num_foreseen_passed = of.num_passed;
    of.next_returned = of.returned.begin();
  }
}

Request* WaitingQueue::NextTurn() {
  Class* turn = nullptr;
  for (Class& of : classes_) {
    if (of.num_turns == of.num_waiting) continue;
    if (turn == nullptr || of.num_foreseen_passed >= kMaxPassed) turn = &of;
  }
  if (turn == nullptr) return nullptr;
  for (Class* of = turn + 1; of < classes_.data() + kNumClasses; ++of) ++of->num_foreseen_passed;
  turn->num_foreseen_passed = 0;
  ++turn->num_turns;
  return NextOf(*turn);
}

Request* WaitingQueue::NextOf(Class& of) {
  if (of.next_returned != of.returned.end()) return (of.next_returned++)->second;
  return NextOfTenants(of);
}

Request* WaitingQueue::NextOfTenants(Class& of) {
  // What stands first in `waiting` may have been served more since, or wait no longer.
  while (!of.waiting.empty()) {
    Tenant* tenant = of.waiting.front().tenant;
    const bool waits = tenant->num_waiting > 0;
    if (waits && of.waiting.front().key == tenant->served) break;
    std::pop_heap(of.waiting.begin(), of.waiting.end());
    of.waiting.pop_back();
    tenant->is_listed = false;
    if (waits) List(of, tenant);
  }
  const bool walked =
      !of.walked.empty() && (of.waiting.empty() || of.waiting.front() < of.walked.front());
  std::vector<Entry>& from = walked ? of.walked : of.waiting;
  CHECK(!from.empty());
  std::pop_heap(from.begin(), from.end());
  Tenant* tenant = from.back().tenant;
  from.pop_back();
  Request* request = walked ? tenant->next : tenant->first;
  if (!walked) tenant->foreseen = tenant->served;
  tenant->foreseen += request->ids.size() * kPromptCost / tenant->weight;
  tenant->next = request->next_waiting;
  // One without a next goes behind all others.
  of.walked.push_back(
      {tenant->next == nullptr ? HUGE_VAL : tenant->foreseen, request->order, tenant});
  std::push_heap(of.walked.begin(), of.walked.end());
  return request;
}

void WaitingQueue::Admit(Request* request, uint32_t num_tokens) {
  Class& of = ClassOf(*request);
  const bool is_new = !of.returned.contains(request->order);
  Remove(request);
  of.num_passed = 0;
  for (Class* other = &of + 1; other < classes_.data() + kNumClasses; ++other) {
    if (other->num_waiting > 0) ++other->num_passed;
  }
  if (!is_new) return;
  Tenant& tenant = *request->tenant_queue;
  of.floor = std::max(of.floor, tenant.served);
  Charge(&tenant, num_tokens * kPromptCost);
}

void WaitingQueue::CheckInvariants() const {
  size_t size = 0;
  for (const Class& of : classes_) {
    size_t num_waiting = of.returned.size();
    uint32_t num_tenants = 0, num_active = 0;
    for (const auto& [name, tenant] : of.tenants) {
      num_active += tenant->num_requests > 0;
      CHECK(tenant->num_waiting <= tenant->num_requests);
      uint32_t here = 0;
      const Request* last = nullptr;
      for (const Request* request = tenant->first; request != nullptr;
           last = request, request = request->next_waiting, ++here) {
        CHECK(request->tenant_queue == tenant.get() && request->previous_waiting == last);
        CHECK(last == nullptr || last->order < request->order);
        CHECK(!of.returned.contains(request->order));
      }
      CHECK(tenant->last == last && here == tenant->num_waiting);
      CHECK(here <= tenant->num_requests && (here == 0 || tenant->is_listed));
      num_waiting += here;
      num_tenants += here > 0;
    }
    CHECK(num_waiting == of.num_waiting && num_tenants == of.num_tenants);
    CHECK(num_active == of.num_active);
    CHECK(of.num_passed == 0 || of.num_waiting > 0);
    size += num_waiting;
  }
  CHECK(size == size_);
}

// Those whose count is no more than what they would be lifted to.
void WaitingQueue::DropIdleTenants(Class& of) {
  const double least = LeastServed(of);
  absl::erase_if(of.tenants, [&](const auto& entry) {
    const Tenant& tenant = *entry.second;
    return tenant.num_requests == 0 && !tenant.is_listed && tenant.served <= least;
  });
  of.max_tenants = std::max(of.tenants.size() + kMaxIdleTenants, 2 * kMaxIdleTenants);
}

}  // namespace penstock::scheduler
