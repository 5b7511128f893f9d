// What a client asked for, of either API, before anything is checked: both fill this, validate.h
// checks it once. Unset fields take their defaults there.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace penstock::router {

struct ChatTurn {
  std::string role;
  std::string content;
};

struct NoPrompt {};
using TokenPrompt = std::vector<int64_t>;
using ChatPrompt = std::vector<ChatTurn>;
using Prompt = std::variant<NoPrompt, std::string, TokenPrompt, ChatPrompt>;

// Numbers are as wide as JSON's, so that what doesn't fit is refused and not cut.
struct RequestFields {
  using Clock = std::chrono::steady_clock;

  std::string model;       // empty: the served one
  std::string request_id;  // empty: one is made
  Prompt prompt;
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<double> min_p;
  std::optional<double> repetition_penalty;
  std::optional<double> presence_penalty;
  std::optional<double> frequency_penalty;
  std::optional<int64_t> top_k;
  std::optional<int64_t> min_tokens;
  std::optional<int64_t> max_tokens;
  std::optional<int64_t> n;        // choices to return
  std::optional<int64_t> best_of;  // to generate
  std::optional<uint64_t> seed;
  std::optional<int64_t> logprobs;
  std::optional<int64_t> prompt_logprobs;
  std::vector<std::string> stop;
  std::vector<int64_t> stop_token_ids;
  std::vector<std::pair<int64_t, double>> logit_bias;
  bool ignore_eos = false;
  bool include_stop = false;
  bool skip_special_tokens = true;
  std::optional<bool> add_special_tokens;  // to a text prompt; default: as the model says
  bool add_generation_prompt = true;       // chat
  bool echo = false;
  bool return_text = true;
  bool return_token_ids = false;
  int64_t priority = 0;    // the lower goes first
  std::string tenant;      // header x-gateway-inference-fairness-id, else `user`
  std::string cache_salt;  // requests of different salts share no KV pages
  bool skip_prefix_cache = false;
  Clock::time_point arrival = Clock::now();
  // When it has to have ended, the soonest of these.
  std::optional<double> timeout;              // seconds from its arrival; HTTP
  std::optional<int64_t> timeout_ms;          // from its arrival; gRPC
  std::optional<Clock::time_point> deadline;  // of the call
};

}  // namespace penstock::router
