#include "scheduler/router_link.h"

#include <bit>

#include "common/log.h"

namespace penstock::scheduler {

absl::StatusOr<std::unique_ptr<RouterLink>> RouterLink::Start(const std::string& address,
                                                              shm::Event* wake) {
  ASSIGN_OR_RETURN(const net::EngineEndpoints endpoints, net::ParseEngineAddress(address));
  auto context = std::make_unique<zmq::context_t>(1);
  ASSIGN_OR_RETURN(net::RequestReceiver requests, net::RequestReceiver::Bind(*context, endpoints));
  ASSIGN_OR_RETURN(net::DeltaSender deltas, net::DeltaSender::Bind(*context, endpoints));
  return std::unique_ptr<RouterLink>(
      new RouterLink(std::move(context), std::move(requests), std::move(deltas), wake));
}

RouterLink::RouterLink(std::unique_ptr<zmq::context_t> context, net::RequestReceiver requests,
                       net::DeltaSender deltas, shm::Event* wake)
    : context_(std::move(context)),
      requests_(std::move(requests)),
      deltas_(std::move(deltas)),
      wake_(wake),
      thread_([this] { Receive(); }) {}

RouterLink::~RouterLink() {
  context_->shutdown();
  thread_.join();
}

void RouterLink::Receive() {
  uint64_t num_bad = 0;
  while (true) {
    wire::ToScheduler message;
    const absl::Status status = requests_.Receive(-1, &message);
    if (status.ok()) {
      {
        std::lock_guard lock(mutex_);
        inbox_.push_back(std::move(message));
      }
      wake_->Notify();
    } else if (absl::IsCancelled(status)) {
      return;
    } else if (!absl::IsNotFound(status) && std::has_single_bit(++num_bad)) {
      // At the 1st, 2nd, 4th, 8th ...: a router of another release sends a lease every half second.
      spdlog::warn("msg=\"refused a message\" so_far={} reason=\"{}\"", num_bad, Message(status));
    }
  }
}

void RouterLink::Take(std::vector<wire::ToScheduler>* messages) {
  messages->clear();
  std::lock_guard lock(mutex_);
  messages->swap(inbox_);
}

}  // namespace penstock::scheduler
