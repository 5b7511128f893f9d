#include "router/request/validate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace penstock::router {
namespace {

constexpr char kFieldPayload[] = "penstock/field";

template <typename T>
absl::Status OutOfRange(const std::string& field, const T& value, const std::string& allowed) {
  return FieldError(field, fmt::format("{} is {}: give {}", field, value, allowed));
}

// Sets *out to the value or `fallback`; the value must be finite and in [min, max].
absl::Status Number(const std::string& field, const std::optional<double>& value, double fallback,
                    double min, double max, const std::string& allowed, float* out) {
  const double number = value.value_or(fallback);
  if (!(number >= min && number <= max)) return OutOfRange(field, number, allowed);  // NaN too
  *out = static_cast<float>(number);
  return absl::OkStatus();
}

absl::Status Integer(const std::string& field, const std::optional<int64_t>& value,
                     int64_t fallback, int64_t min, int64_t max, const std::string& allowed,
                     int32_t* out) {
  const int64_t number = value.value_or(fallback);
  if (number < min || number > max) return OutOfRange(field, number, allowed);
  *out = static_cast<int32_t>(number);
  return absl::OkStatus();
}

absl::Status CheckTokenId(const std::string& field, int64_t id, const ModelLimits& limits) {
  if (id >= 0 && id < limits.vocab_size) return absl::OkStatus();
  return FieldError(field, fmt::format("{} has token id {}: the model's ids are 0 to {}", field, id,
                                       limits.vocab_size - 1));
}

absl::Status CheckPrompt(const Prompt& prompt, const ModelLimits& limits) {
  if (const auto* text = std::get_if<std::string>(&prompt)) {
    if (text->empty()) return FieldError("prompt", "prompt is empty: give text or token ids");
  } else if (const auto* ids = std::get_if<TokenPrompt>(&prompt)) {
    if (ids->empty()) return FieldError("prompt", "prompt is empty: give text or token ids");
    for (const int64_t id : *ids) RETURN_IF_ERROR(CheckTokenId("prompt", id, limits));
  } else if (const auto* messages = std::get_if<ChatPrompt>(&prompt)) {
    if (messages->empty()) {
      return FieldError("messages", "messages is empty: give at least one message");
    }
    if (messages->size() > kMaxMessages) {
      return FieldError("messages", fmt::format("messages has {} entries: give at most {}",
                                                messages->size(), kMaxMessages));
    }
    for (size_t i = 0; i < messages->size(); ++i) {
      if (!(*messages)[i].role.empty()) continue;
      return FieldError("messages", fmt::format("messages[{}].role is empty: give \"system\", "
                                                "\"user\" or \"assistant\"",
                                                i));
    }
  } else {
    return FieldError("prompt", "prompt is missing: give text or token ids");
  }
  return absl::OkStatus();
}

absl::Status CheckStops(const RequestFields& fields, const ModelLimits& limits) {
  if (fields.stop.size() > kMaxStopStrings) {
    return FieldError("stop", fmt::format("stop has {} strings: give at most {}",
                                          fields.stop.size(), kMaxStopStrings));
  }
  for (const std::string& stop : fields.stop) {
    if (stop.empty()) return FieldError("stop", "stop has an empty string: leave it out");
    if (stop.size() > kMaxStopLength) {
      return FieldError("stop", fmt::format("stop has a string of {} bytes: give at most {}",
                                            stop.size(), kMaxStopLength));
    }
  }
  if (fields.stop_token_ids.size() > kMaxStopIds) {
    return FieldError("stop_token_ids", fmt::format("stop_token_ids has {} ids: give at most {}",
                                                    fields.stop_token_ids.size(), kMaxStopIds));
  }
  for (const int64_t id : fields.stop_token_ids) {
    RETURN_IF_ERROR(CheckTokenId("stop_token_ids", id, limits));
  }
  return absl::OkStatus();
}

absl::Status SetBiases(const RequestFields& fields, const ModelLimits& limits,
                       wire::Sampling* sampling) {
  if (fields.logit_bias.size() > kMaxBiases) {
    return FieldError("logit_bias", fmt::format("logit_bias has {} entries: give at most {}",
                                                fields.logit_bias.size(), kMaxBiases));
  }
  for (const auto& [id, bias] : fields.logit_bias) {
    RETURN_IF_ERROR(CheckTokenId("logit_bias", id, limits));
    if (!(bias >= -100 && bias <= 100)) {
      return FieldError("logit_bias",
                        fmt::format("logit_bias of token {} is {}: give -100 to 100", id, bias));
    }
    sampling->add_bias_ids(static_cast<int32_t>(id));
    sampling->add_biases(static_cast<float>(bias));
  }
  return absl::OkStatus();
}

absl::Status SetNumbers(const RequestFields& fields, const SamplingDefaults& defaults,
                        wire::Sampling* sampling) {
  constexpr double kMaxFloat = std::numeric_limits<float>::max();
  constexpr double kTiny = std::numeric_limits<float>::min();
  constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();
  float number = 0;
  RETURN_IF_ERROR(Number("temperature", fields.temperature, defaults.temperature, 0, kMaxFloat,
                         "0 (greedy) or a positive number", &number));
  sampling->set_temperature(number);
  RETURN_IF_ERROR(Number("top_p", fields.top_p, defaults.top_p, kTiny, 1,
                         "a number above 0 and at most 1", &number));
  sampling->set_top_p(number);
  RETURN_IF_ERROR(
      Number("min_p", fields.min_p, defaults.min_p, 0, 1, "a number from 0 to 1", &number));
  sampling->set_min_p(number);
  RETURN_IF_ERROR(Number("repetition_penalty", fields.repetition_penalty,
                         defaults.repetition_penalty, kTiny, kMaxFloat, "a number above 0",
                         &number));
  sampling->set_repetition_penalty(number);
  RETURN_IF_ERROR(Number("presence_penalty", fields.presence_penalty, 0, -2, 2,
                         "a number from -2 to 2", &number));
  sampling->set_presence_penalty(number);
  RETURN_IF_ERROR(Number("frequency_penalty", fields.frequency_penalty, 0, -2, 2,
                         "a number from -2 to 2", &number));
  sampling->set_frequency_penalty(number);
  int32_t integer = 0;
  RETURN_IF_ERROR(Integer("top_k", fields.top_k, defaults.top_k, -1, kMaxInt,
                          "-1 or 0 (off) or a positive integer", &integer));
  sampling->set_top_k(std::max(integer, 0));
  RETURN_IF_ERROR(Integer("min_tokens", fields.min_tokens, 0, 0, kMaxInt, "0 or more", &integer));
  sampling->set_min_tokens(integer);
  RETURN_IF_ERROR(Integer("max_tokens", fields.max_tokens, kMaxInt, 1, kMaxInt,
                          "a positive integer", &integer));
  sampling->set_max_tokens(fields.max_tokens ? integer : 0);
  if (fields.max_tokens && *fields.max_tokens < sampling->min_tokens()) {
    return FieldError("min_tokens", fmt::format("min_tokens is {}, more than max_tokens, {}: give "
                                                "at most max_tokens",
                                                sampling->min_tokens(), *fields.max_tokens));
  }
  const std::string counts = fmt::format("an integer from 0 to {}", kMaxLogprobs);
  RETURN_IF_ERROR(Integer("logprobs", fields.logprobs, 0, 0, kMaxLogprobs, counts, &integer));
  sampling->set_num_top_logprobs(fields.logprobs ? integer : -1);
  RETURN_IF_ERROR(
      Integer("prompt_logprobs", fields.prompt_logprobs, 0, 0, kMaxLogprobs, counts, &integer));
  sampling->set_num_prompt_logprobs(fields.prompt_logprobs ? integer : -1);
  return absl::OkStatus();
}

// min(arrival + timeout, the call's own deadline). No request takes as long as kLongest, and a time
// that far ahead still is one.
absl::Status SetDeadline(const RequestFields& fields, GenerationRequest* request) {
  using Seconds = std::chrono::duration<double>;
  constexpr double kLongest = 1e9;
  request->arrival = fields.arrival;
  request->deadline = fields.deadline;
  const auto limit = [&](double seconds) {
    const auto timeout =
        std::chrono::ceil<RequestFields::Clock::duration>(Seconds(std::min(seconds, kLongest)));
    const auto deadline = fields.arrival + timeout;
    request->deadline = std::min(request->deadline.value_or(deadline), deadline);
  };
  if (fields.timeout) {
    if (!(*fields.timeout > 0)) {  // NaN too
      return OutOfRange("timeout", *fields.timeout, "a positive number of seconds");
    }
    limit(*fields.timeout);
  }
  if (fields.timeout_ms) {
    if (*fields.timeout_ms <= 0) {
      return OutOfRange("timeout_ms", *fields.timeout_ms, "a positive number of milliseconds");
    }
    limit(1e-3 * static_cast<double>(*fields.timeout_ms));
  }
  return absl::OkStatus();
}

absl::Status SetChoices(const RequestFields& fields, GenerationRequest* request) {
  const std::string allowed = fmt::format("an integer from 1 to {}", kMaxChoices);
  int32_t integer = 0;
  RETURN_IF_ERROR(Integer("n", fields.n, 1, 1, kMaxChoices, allowed, &integer));
  request->n = integer;
  RETURN_IF_ERROR(Integer("best_of", fields.best_of, request->n, request->n, kMaxChoices,
                          fmt::format("an integer from n, {}, to {}", request->n, kMaxChoices),
                          &integer));
  request->num_choices = integer;
  request->return_logprobs = fields.logprobs.has_value();
  // The best are chosen by their log-probabilities.
  if (request->num_choices > request->n && !fields.logprobs) {
    request->sampling.set_num_top_logprobs(0);
  }
  return absl::OkStatus();
}

absl::Status CheckLength(const std::string& field, const char* what, const std::string& value,
                         int max) {
  if (value.size() <= static_cast<size_t>(max)) return absl::OkStatus();
  return FieldError(field,
                    fmt::format("{} has {} bytes: give at most {}", what, value.size(), max));
}

}  // namespace

uint64_t ChoiceSeed(uint64_t seed, int index) {
  if (index == 0) return seed;
  // SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
  uint64_t x = seed + static_cast<uint64_t>(index) * 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

absl::Status FieldError(const std::string& field, const std::string& message) {
  absl::Status status(absl::StatusCode::kInvalidArgument, message);
  status.SetPayload(kFieldPayload, absl::Cord(field));
  return status;
}

std::string FieldOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kFieldPayload);
  return payload ? std::string(*payload) : std::string();
}

absl::StatusOr<std::string> CheckModel(const std::string& name, const ModelLimits& limits) {
  if (name.empty()) return limits.names.front();
  if (std::find(limits.names.begin(), limits.names.end(), name) != limits.names.end()) return name;
  absl::Status status = NotFound("the model \"{}\" does not exist here: this server has \"{}\"",
                                 name, fmt::join(limits.names, "\", \""));
  status.SetPayload(kFieldPayload, absl::Cord("model"));
  return status;
}

absl::Status CheckDefaults(const SamplingDefaults& defaults) {
  wire::Sampling sampling;
  RETURN_IF_ERROR(SetNumbers({}, defaults, &sampling));
  int32_t max_new_tokens = 0;
  return Integer("max_new_tokens", defaults.max_new_tokens, 1, 1,
                 std::numeric_limits<int32_t>::max(), "a positive integer", &max_new_tokens);
}

absl::StatusOr<GenerationRequest> Validate(RequestFields fields, const ModelLimits& limits) {
  GenerationRequest request;
  ASSIGN_OR_RETURN(request.model, CheckModel(fields.model, limits));
  RETURN_IF_ERROR(CheckLength("request_id", "request_id", fields.request_id, kMaxRequestIdLength));
  RETURN_IF_ERROR(CheckLength("cache_salt", "cache_salt", fields.cache_salt, kMaxCacheSaltLength));
  RETURN_IF_ERROR(CheckLength("user", "user (or x-gateway-inference-fairness-id)", fields.tenant,
                              kMaxTenantLength));
  RETURN_IF_ERROR(CheckPrompt(fields.prompt, limits));
  RETURN_IF_ERROR(SetNumbers(fields, limits.defaults, &request.sampling));
  RETURN_IF_ERROR(CheckStops(fields, limits));
  RETURN_IF_ERROR(SetBiases(fields, limits, &request.sampling));
  RETURN_IF_ERROR(SetChoices(fields, &request));
  RETURN_IF_ERROR(SetDeadline(fields, &request));
  RETURN_IF_ERROR(Integer("priority", fields.priority, 0, 0, kMaxPriority,
                          fmt::format("0 (goes first) to {}", kMaxPriority), &request.priority));
  for (const int64_t id : fields.stop_token_ids) {
    request.sampling.add_stop_ids(static_cast<int32_t>(id));
  }
  if (fields.seed) request.sampling.set_seed(*fields.seed);
  request.has_seed = fields.seed.has_value();
  request.request_id = std::move(fields.request_id);
  request.prompt = std::move(fields.prompt);
  request.stop = std::move(fields.stop);
  request.ignore_eos = fields.ignore_eos;
  request.include_stop = fields.include_stop;
  request.skip_special_tokens = fields.skip_special_tokens;
  request.add_special_tokens = fields.add_special_tokens;
  request.add_generation_prompt = fields.add_generation_prompt;
  request.echo = fields.echo;
  request.return_text = fields.return_text || !fields.return_token_ids;
  request.return_token_ids = fields.return_token_ids;
  request.tenant = std::move(fields.tenant);
  request.cache_salt = std::move(fields.cache_salt);
  request.skip_prefix_cache = fields.skip_prefix_cache;
  return request;
}

absl::Status FitToContext(int64_t prompt_len, const ModelLimits& limits,
                          GenerationRequest* request) {
  const bool chat = std::holds_alternative<ChatPrompt>(request->prompt);
  const std::string field = chat ? "messages" : "prompt";
  if (prompt_len == 0) return FieldError(field, fmt::format("{} has no tokens", field));
  const int64_t room = limits.max_model_len - prompt_len;
  if (room < 1) {
    return FieldError(field, fmt::format("{} has {} tokens, and the model's context holds {} with "
                                         "at least 1 of output: shorten it",
                                         field, prompt_len, limits.max_model_len));
  }
  wire::Sampling& sampling = request->sampling;
  if (sampling.max_tokens() == 0) {
    // What the model suggests must neither fit nor keep a request from its own min_tokens.
    const int64_t suggested = limits.defaults.max_new_tokens.value_or(room);
    const int64_t wanted = std::max<int64_t>(suggested, sampling.min_tokens());
    sampling.set_max_tokens(static_cast<int32_t>(std::min(wanted, room)));
  } else if (sampling.max_tokens() > room) {
    return FieldError(
        "max_tokens",
        fmt::format("max_tokens is {}, and {} prompt tokens leave room for {} in the "
                    "model's context of {}: give at most {}",
                    sampling.max_tokens(), prompt_len, room, limits.max_model_len, room));
  }
  sampling.set_min_tokens(std::min(sampling.min_tokens(), sampling.max_tokens()));
  return absl::OkStatus();
}

}  // namespace penstock::router
