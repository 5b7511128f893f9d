// Checks what a client asked for, once for both APIs. Pure.
//
// Errors are INVALID_ARGUMENT (NOT_FOUND for the model) and name the field, its value and what is
// allowed; FieldOf gives the field by itself.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/status.h"
#include "proto/wire.pb.h"
#include "router/request/fields.h"

namespace penstock::router {

constexpr int kMaxStopStrings = 16;
constexpr int kMaxStopLength = 1024;  // bytes of a stop string
constexpr int kMaxStopIds = 128;
constexpr int kMaxLogprobs = 20;
constexpr int kMaxBiases = 1024;
constexpr int kMaxMessages = 4096;
constexpr int kMaxRequestIdLength = 256;
constexpr int kMaxTenantLength = 256;     // bytes
constexpr int kMaxCacheSaltLength = 256;  // bytes
constexpr int kMaxChoices = 128;          // as OpenAI allows for n
constexpr int kMaxPriority = 9;           // classes 0 to 9, as the wire has them

// What a request gets for what it leaves out, unless the model says otherwise.
struct SamplingDefaults {
  double temperature = 1;
  double top_p = 1;
  double min_p = 0;
  double repetition_penalty = 1;
  int64_t top_k = 0;                      // 0: off
  std::optional<int64_t> max_new_tokens;  // nullopt: what the context still holds

  bool operator==(const SamplingDefaults&) const = default;
};

// What the served model allows and suggests.
struct ModelLimits {
  std::vector<std::string> names;  // that it is served under, at least one
  int32_t vocab_size = 0;
  int32_t max_model_len = 0;  // prompt and output together
  SamplingDefaults defaults = {};
};

// A sound request. `sampling` lacks what depends on the prompt's length (FitToContext) and on the
// model's end tokens.
struct GenerationRequest {
  std::string model;  // the name it was asked for by
  std::string request_id;
  Prompt prompt;            // never NoPrompt
  wire::Sampling sampling;  // of choice 0; the others' seeds differ (ChoiceSeed)
  bool has_seed = false;    // else one has to be drawn
  int n = 1;                // choices to return
  int num_choices = 1;      // to generate: n, or best_of
  bool return_logprobs = false;
  std::vector<std::string> stop;
  bool ignore_eos = false;
  bool include_stop = false;
  bool skip_special_tokens = true;
  std::optional<bool> add_special_tokens;
  bool add_generation_prompt = true;
  bool echo = false;
  bool return_text = true;
  bool return_token_ids = false;
  int32_t priority = 0;
  std::string tenant;
  std::string cache_salt;
  bool skip_prefix_cache = false;
  RequestFields::Clock::time_point arrival;
  std::optional<RequestFields::Clock::time_point> deadline;
};

// The seed of choice `index` of a request with `seed`: a fixed function, and of choice 0 the seed
// itself, so that its text is that of a request for one choice.
uint64_t ChoiceSeed(uint64_t seed, int index);

// `limits.defaults` have passed CheckDefaults.
absl::StatusOr<GenerationRequest> Validate(RequestFields fields, const ModelLimits& limits);

// Whether requests could ask for these values; names the field that none could.
absl::Status CheckDefaults(const SamplingDefaults& defaults);

// The name under which the model was asked for: the first served one if `name` is empty. NOT_FOUND
// if it isn't served.
absl::StatusOr<std::string> CheckModel(const std::string& name, const ModelLimits& limits);

// Checks the prompt's length in tokens against the context and settles sampling.max_tokens: what
// was asked for must fit; by default it is what the context still holds, or the model's
// max_new_tokens where that is less.
absl::Status FitToContext(int64_t prompt_len, const ModelLimits& limits,
                          GenerationRequest* request);

// INVALID_ARGUMENT that carries the name of the field it is about.
absl::Status FieldError(const std::string& field, const std::string& message);
// The field a status is about; empty if it names none.
std::string FieldOf(const absl::Status& status);

}  // namespace penstock::router
