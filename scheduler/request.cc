#include "scheduler/request.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "scheduler/waiting_queue.h"

namespace penstock::scheduler {
namespace {

constexpr uint64_t RoundUp8(uint64_t bytes) { return (bytes + 7) & ~uint64_t{7}; }

struct PackedBias {
  int32_t id;
  float bias;
};

}  // namespace

std::unique_ptr<Request> MakeRequest(const wire::Submit& submit) {
  auto request = std::make_unique<Request>();
  request->id = submit.id();
  request->request_id = submit.request_id();
  request->ids.assign(submit.ids().begin(), submit.ids().end());
  request->prompt_len = static_cast<uint32_t>(submit.prompt_len());
  request->first_output = request->num_outputs();
  request->cache_salt = submit.cache_salt();
  request->tenant = submit.tenant();
  request->priority = static_cast<uint8_t>(submit.priority());
  request->skip_prefix_cache = submit.skip_prefix_cache();
  request->sampling = submit.sampling();
  // Of a stream that goes on after our restart, the router has the prompt's already.
  request->wants_prompt_logprobs =
      submit.sampling().num_prompt_logprobs() >= 0 && request->num_outputs() == 0;
  if (submit.sampling().num_top_logprobs() >= 0 || request->wants_prompt_logprobs) {
    request->logprobs = std::make_unique<LogprobLog>();
  }
  return request;
}

uint32_t LengthLimit(const Request& request, const ModelFacts& model) {
  const uint64_t asked = uint64_t{request.prompt_len} + request.sampling.max_tokens();
  const uint64_t pages_hold = uint64_t{model.num_pages} * model.page_size + 1;
  return static_cast<uint32_t>(
      std::min({asked, uint64_t{model.max_model_len}, pages_hold, uint64_t{UINT32_MAX}}));
}

uint64_t ArenaBytes(const Request& request) {
  return RoundUp8(request.ids.size() * sizeof(int32_t)) +
         RoundUp8(request.sampling.stop_ids_size() * sizeof(int32_t)) +
         request.sampling.bias_ids_size() * sizeof(PackedBias);
}

absl::Status ValidateSubmit(const wire::Submit& submit) {
  if (submit.ids_size() == 0) return InvalidArgument("the prompt has no ids: send at least one");
  if (submit.prompt_len() < 1 || submit.prompt_len() > submit.ids_size()) {
    return InvalidArgument("prompt_len {} is not in 1..{}", submit.prompt_len(), submit.ids_size());
  }
  if (submit.priority() < 0 ||
      submit.priority() >= static_cast<int32_t>(WaitingQueue::kNumClasses)) {
    return InvalidArgument("priority {} is not in 0..{} (the lower goes first)", submit.priority(),
                           WaitingQueue::kNumClasses - 1);
  }
  const wire::Sampling& sampling = submit.sampling();
  if (sampling.max_tokens() < 1) {
    return InvalidArgument("max_tokens {} must be at least 1", sampling.max_tokens());
  }
  if (sampling.bias_ids_size() != sampling.biases_size()) {
    return InvalidArgument("{} bias ids but {} biases", sampling.bias_ids_size(),
                           sampling.biases_size());
  }
  for (float value :
       {sampling.temperature(), sampling.top_p(), sampling.min_p(), sampling.repetition_penalty(),
        sampling.presence_penalty(), sampling.frequency_penalty()}) {
    if (!std::isfinite(value)) return InvalidArgument("a sampling parameter is not finite");
  }
  for (int32_t count : {sampling.num_top_logprobs(), sampling.num_prompt_logprobs()}) {
    if (count < -1 || count > shm::kMaxTopLogprobs) {
      return InvalidArgument("{} log-probabilities were asked for: 0 to {} can be had", count,
                             shm::kMaxTopLogprobs);
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateRequest(const Request& request, const ModelFacts& model,
                             uint64_t total_arena_bytes) {
  const auto bad = std::find_if(request.ids.begin(), request.ids.end(), [&](int32_t id) {
    return id < 0 || static_cast<uint32_t>(id) >= model.vocab_size;
  });
  if (bad != request.ids.end()) {
    return InvalidArgument("id {} at position {} is not in the vocabulary (0..{})", *bad,
                           bad - request.ids.begin(), model.vocab_size - 1);
  }
  for (const auto* ids : {&request.sampling.bias_ids(), &request.sampling.stop_ids()}) {
    for (int32_t id : *ids) {
      if (id >= 0 && static_cast<uint32_t>(id) < model.vocab_size) continue;
      return InvalidArgument("{} id {} is not in the vocabulary (0..{})",
                             ids == &request.sampling.stop_ids() ? "stop" : "logit_bias", id,
                             model.vocab_size - 1);
    }
  }
  if (request.ids.size() + 1 > model.max_model_len) {
    return InvalidArgument(
        "the prompt has {} ids, the model's context takes {} and one more to generate: shorten the "
        "prompt or raise --max-model-len",
        request.ids.size(), model.max_model_len - 1);
  }
  const uint64_t pages_hold = uint64_t{model.num_pages} * model.page_size;
  if (request.ids.size() > pages_hold) {
    return InvalidArgument(
        "the prompt has {} ids, the engine's {} KV pages hold {}: shorten the prompt or give the "
        "engine more KV memory",
        request.ids.size(), model.num_pages, pages_hold);
  }
  if (ArenaBytes(request) > total_arena_bytes) {
    return InvalidArgument("the request's ids take {} bytes of {} bytes of arena: raise --arena-mb",
                           ArenaBytes(request), total_arena_bytes);
  }
  return absl::OkStatus();
}

wire::EndReason EndAfterLastId(const Request& request, const ModelFacts& model) {
  if (request.num_outputs() >= static_cast<uint32_t>(request.sampling.min_tokens())) {
    for (int32_t stop : request.sampling.stop_ids()) {
      if (stop == request.ids.back()) return wire::END_STOP;
    }
  }
  return request.ids.size() >= LengthLimit(request, model) ? wire::END_LENGTH : wire::END_NONE;
}

void WriteSlot(const Request& request, std::byte* arena, uint64_t offset, shm::RequestSlot* slot) {
  const uint64_t ids_bytes = request.ids.size() * sizeof(int32_t);
  std::memcpy(arena + offset, request.ids.data(), ids_bytes);
  slot->prompt_len = request.prompt_len;
  slot->known_len = static_cast<uint32_t>(request.ids.size());
  slot->ids_offset = offset;
  slot->sampling = PackSampling(request.sampling, arena, offset + RoundUp8(ids_bytes));
}

shm::SamplingRecord PackSampling(const wire::Sampling& s, std::byte* arena, uint64_t offset) {
  shm::SamplingRecord record = {};
  record.temperature = s.temperature();
  record.top_p = s.top_p();
  record.min_p = s.min_p();
  record.repetition_penalty = s.repetition_penalty();
  record.presence_penalty = s.presence_penalty();
  record.frequency_penalty = s.frequency_penalty();
  record.top_k = s.top_k();
  record.min_tokens = s.min_tokens();
  record.seed = s.seed();
  record.num_top_logprobs = s.num_top_logprobs();
  record.num_prompt_logprobs = s.num_prompt_logprobs();
  record.num_stop_ids = static_cast<uint32_t>(s.stop_ids_size());
  record.num_logit_bias = static_cast<uint32_t>(s.bias_ids_size());
  record.stop_ids_offset = offset;
  std::copy(s.stop_ids().begin(), s.stop_ids().end(), reinterpret_cast<int32_t*>(arena + offset));
  offset += RoundUp8(s.stop_ids_size() * sizeof(int32_t));
  record.logit_bias_offset = offset;
  for (int i = 0; i < s.bias_ids_size(); ++i) {
    const PackedBias bias{s.bias_ids(i), s.biases(i)};
    std::memcpy(arena + offset + i * sizeof(bias), &bias, sizeof(bias));
  }
  return record;
}

}  // namespace penstock::scheduler
