#include "router/engine/engine_pool.h"

#include <algorithm>
#include <random>

#include "router/balance/least_loaded.h"

namespace penstock::router {

uint64_t RandomU64() {
  thread_local std::random_device device;
  return uint64_t{device()} << 32 | device();
}

absl::StatusOr<std::unique_ptr<EnginePool>> EnginePool::Connect(
    const std::vector<std::string>& addresses, const LinkOptions& options) {
  if (addresses.empty()) return InvalidArgument("no engine: give --engine tcp://host:port");
  std::unique_ptr<EnginePool> pool(new EnginePool);
  pool->links_.resize(addresses.size());
  for (size_t i = 0; i < addresses.size(); ++i) {
    const auto move = [p = pool.get(), i](const std::shared_ptr<OpenRequest>& request) {
      if (!p->connected_) return false;
      std::string reason;
      EngineLink* link = p->Choose(p->links_[i].get(), /*or_returning=*/false, &reason);
      return link != nullptr && link->Submit({&request, 1}).ok();
    };
    ASSIGN_OR_RETURN(pool->links_[i],
                     EngineLink::Connect(pool->context_, addresses[i], options, move));
  }
  pool->connected_ = true;
  return pool;
}

EnginePool::~EnginePool() {
  Stop(Unavailable("the server ends"));
  links_.clear();
}

EngineLink* EnginePool::Choose(const EngineLink* except, bool or_returning,
                               std::string* reason) const {
  std::vector<EngineLoad> ready, returning;
  for (const auto& link : links_) {
    const EngineState state = link->State();
    const EngineLoad load{.usable = state.usable && link.get() != except,
                          .in_flight = state.in_flight,
                          .running = state.status.num_running(),
                          .waiting = state.status.num_waiting(),
                          .kv_usage = state.status.kv_cache_usage()};
    ready.push_back(load);
    returning.push_back(load);
    returning.back().usable = state.returning && link.get() != except;
    if (!state.usable && reason->empty()) *reason = state.reason;
  }
  std::optional<size_t> best = LeastLoaded(ready);
  if (!best && or_returning) best = LeastLoaded(returning);
  return best ? links_[*best].get() : nullptr;
}

absl::StatusOr<std::vector<uint64_t>> EnginePool::Submit(
    std::span<const std::shared_ptr<OpenRequest>> requests) {
  std::string reason;
  EngineLink* link = Choose(nullptr, /*or_returning=*/true, &reason);
  if (link == nullptr) return Unavailable("no engine can take requests now: {}", reason);
  std::vector<uint64_t> ids;
  for (const auto& request : requests) {
    ids.push_back(next_id_.fetch_add(1));
    request->submit.set_id(ids.back());
  }
  RETURN_IF_ERROR(link->Submit(requests));
  return ids;
}

void EnginePool::Cancel(std::span<const uint64_t> ids) {
  for (const auto& link : links_) link->Cancel(ids);
}

std::vector<EngineState> EnginePool::States() const {
  std::vector<EngineState> states;
  for (const auto& link : links_) states.push_back(link->State());
  return states;
}

absl::Status EnginePool::Ready() const {
  std::string reason;
  if (Choose(nullptr, /*or_returning=*/false, &reason) != nullptr) return absl::OkStatus();
  return Unavailable("{}", reason);
}

absl::Status EnginePool::Accepts() const {
  std::string reason;
  if (Choose(nullptr, /*or_returning=*/true, &reason) != nullptr) return absl::OkStatus();
  return Unavailable("no engine can take requests now: {}", reason);
}

uint32_t EnginePool::max_model_len() const {
  uint32_t smallest = 0;
  for (const auto& link : links_) {
    const uint32_t length = link->State().status.max_model_len();
    if (length != 0) smallest = smallest == 0 ? length : std::min(smallest, length);
  }
  return smallest;
}

void EnginePool::Stop(const absl::Status& status) {
  for (const auto& link : links_) {
    if (link != nullptr) link->Stop(status);
  }
}

}  // namespace penstock::router
