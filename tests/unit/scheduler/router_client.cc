#include "tests/unit/scheduler/router_client.h"

#include <algorithm>

#include "common/log.h"
#include "common/shm/event.h"
#include "gtest/gtest.h"

namespace penstock::scheduler {
namespace {

net::EngineEndpoints Endpoints(const std::string& address) {
  auto endpoints = net::ParseEngineAddress(address);
  CHECK(endpoints.ok());
  return *endpoints;
}

template <typename T>
T Checked(absl::StatusOr<T> value) {
  CHECK(value.ok());
  return std::move(*value);
}

}  // namespace

RouterClient::RouterClient(zmq::context_t& context, const std::string& address,
                           std::string router_id)
    : router_id_(std::move(router_id)),
      sender_(Checked(net::RequestSender::Connect(context, Endpoints(address)))),
      receiver_(Checked(net::DeltaReceiver::Connect(context, Endpoints(address), router_id_))) {}

wire::Submit RouterClient::MakeSubmit(uint64_t id, int prompt_len, int max_tokens) {
  wire::Submit submit;
  submit.set_id(id);
  submit.set_request_id("test-" + std::to_string(id));
  for (int i = 0; i < prompt_len; ++i) {
    submit.add_ids(static_cast<int32_t>((id * 31 + i * 7) % 1000));
  }
  submit.set_prompt_len(prompt_len);
  wire::Sampling& sampling = *submit.mutable_sampling();
  sampling.set_top_p(1);
  sampling.set_repetition_penalty(1);
  sampling.set_max_tokens(max_tokens);
  sampling.set_seed(id);
  sampling.set_num_top_logprobs(-1);
  sampling.set_num_prompt_logprobs(-1);
  return submit;
}

void RouterClient::Submit(const wire::Submit& submit) { Submit(std::vector{submit}); }

void RouterClient::Submit(const std::vector<wire::Submit>& submits) {
  wire::ToScheduler message;
  for (const wire::Submit& submit : submits) {
    streams[submit.id()].submit = submit;
    *message.add_submit() = submit;
  }
  Send(std::move(message));
}

void RouterClient::Resubmit(ClientStream& stream) {
  wire::ToScheduler message;
  wire::Submit& submit = *message.add_submit() = stream.submit;
  for (int32_t id : stream.outputs) submit.add_ids(id);
  ++stream.num_resubmitted;
  Send(std::move(message));
}

void RouterClient::Cancel(std::vector<uint64_t> ids) {
  wire::ToScheduler message;
  for (uint64_t id : ids) {
    message.mutable_cancel()->add_ids(id);
    streams.erase(id);
  }
  Send(std::move(message));
}

void RouterClient::Send(wire::ToScheduler message) {
  message.set_router_id(router_id_);
  CHECK(sender_.Send(&message).ok());
}

void RouterClient::SendLease() {
  wire::ToScheduler message;
  wire::Lease& lease = *message.mutable_lease();
  lease.set_sequence(++lease_sequence_);
  for (const auto& [id, stream] : streams) {
    if (stream.num_ends > 0) continue;
    lease.add_ids(id);
    lease.add_num_received(check_ids ? static_cast<uint32_t>(stream.outputs.size())
                                     : static_cast<uint32_t>(INT32_MAX));
  }
  Send(std::move(message));
  next_lease_ns_ = shm::MonotonicNs() + lease_ms * int64_t{1'000'000};
}

void RouterClient::Goodbye() {
  wire::ToScheduler message;
  message.set_goodbye(true);
  Send(std::move(message));
}

bool RouterClient::AllEnded() const {
  return std::all_of(streams.begin(), streams.end(),
                     [](const auto& entry) { return entry.second.num_ends > 0; });
}

bool RouterClient::WaitStatus(const std::function<bool(const wire::Status&)>& holds,
                              int timeout_ms) {
  const uint64_t asked = lease_sequence_;
  SendLease();
  return PumpUntil([&] { return status.lease_sequence() > asked && holds(status); }, timeout_ms);
}

bool RouterClient::PumpUntil(const std::function<bool()>& condition, int timeout_ms) {
  const int64_t deadline_ns = shm::MonotonicNs() + timeout_ms * int64_t{1'000'000};
  wire::ToRouter message;
  while (!condition()) {
    const int64_t now_ns = shm::MonotonicNs();
    if (now_ns >= deadline_ns) return false;
    if (send_leases && now_ns >= next_lease_ns_) SendLease();
    int64_t wake_ns = deadline_ns;
    if (send_leases) wake_ns = std::min(wake_ns, next_lease_ns_);
    const auto wait_ms = static_cast<int>((wake_ns - now_ns) / 1'000'000 + 1);
    const absl::Status received = receiver_.Receive(wait_ms, &message);
    if (received.ok()) {
      Take(message);
    } else {
      CHECK(absl::IsNotFound(received));
    }
  }
  return true;
}

void RouterClient::Take(const wire::ToRouter& message) {
  ++num_messages;
  epoch = message.epoch();
  if (message.has_deltas() && !drop_deltas) TakeDeltas(message.deltas());
  if (!message.has_status()) return;
  status = message.status();
  has_status = true;
  if (!answer_unknown) return;
  for (uint64_t id : status.unknown_ids()) {
    const auto found = streams.find(id);
    if (found != streams.end() && found->second.num_ends == 0) Resubmit(found->second);
  }
}

void RouterClient::TakeDeltas(const wire::Deltas& deltas) {
  if (!check_ids) {
    for (int i = 0; i < deltas.end_size(); ++i) {
      if (deltas.end(i) == wire::END_NONE) continue;
      ++streams[deltas.id(i)].num_ends;
      ++num_ended;
    }
    return;
  }
  std::vector<const wire::Extra*> extras(deltas.id_size());
  for (const wire::Extra& extra : deltas.extra()) extras[extra.index()] = &extra;
  int next = 0;
  for (int i = 0; i < deltas.id_size(); ++i) {
    const int begin = next;
    const int count = static_cast<int>(deltas.count(i));
    next += count;
    const auto found = streams.find(deltas.id(i));
    if (found == streams.end() || found->second.num_ends > 0) continue;
    ClientStream& stream = found->second;
    const auto first = static_cast<int>(deltas.first(i));
    const auto have = static_cast<int>(stream.outputs.size());
    if (first > have) continue;  // a gap: the lease has it sent again
    stream.num_repeated_ids += std::min(have - first, count);
    for (int k = have - first; k < count; ++k) {
      stream.outputs.push_back(deltas.token_ids(begin + k));
      if (extras[i] != nullptr && k < extras[i]->logprobs_size()) {
        stream.logprobs.push_back(extras[i]->logprobs(k));
      }
    }
    if (extras[i] != nullptr && extras[i]->prompt_logprobs_size() > 0) {
      stream.prompt_logprobs.assign(extras[i]->prompt_logprobs().begin(),
                                    extras[i]->prompt_logprobs().end());
    }
    if (extras[i] != nullptr && extras[i]->cached_tokens() > 0) {
      stream.cached_tokens = extras[i]->cached_tokens();
    }
    if (deltas.end_size() == 0 || deltas.end(i) == wire::END_NONE) continue;
    stream.end = deltas.end(i);
    ++stream.num_ends;
    if (extras[i] != nullptr) {
      stream.error_code = extras[i]->error_code();
      stream.retry_after_s = extras[i]->retry_after_s();
      stream.error = extras[i]->error();
    }
  }
}

}  // namespace penstock::scheduler
