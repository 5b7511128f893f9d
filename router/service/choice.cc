#include "router/service/choice.h"

#include <algorithm>
#include <utility>

namespace penstock::router {
namespace {

TokenLogprob FromWire(int32_t id, const wire::Logprob& from) {
  TokenLogprob to{.id = id, .logprob = from.logprob(), .rank = from.rank(), .top = {}};
  const int size = std::min(from.top_ids_size(), from.top_logprobs_size());
  to.top.reserve(size);
  for (int i = 0; i < size; ++i) to.top.emplace_back(from.top_ids(i), from.top_logprobs(i));
  return to;
}

double Seconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

Choice::Choice(int index, const GenerationRequest& request, const std::vector<int32_t>& prompt_ids,
               const Tokenizer& tokenizer, Metrics& metrics)
    : index_(index),
      request_(request),
      prompt_ids_(prompt_ids),
      tokenizer_(tokenizer),
      metrics_(metrics),
      text_(&tokenizer, {.skip_special = request_.skip_special_tokens,
                         .stop = request_.stop,
                         .include_stop_str = request_.include_stop}) {}

Output Choice::Advance(const TokenDelta& delta, size_t begin, size_t count) {
  const bool last = begin + count == delta.ids.size();
  std::span<const int32_t> ids = delta.ids.subspan(begin, count);
  // The id that stops a request is counted, but is no text.
  const bool stop_id = last && delta.end == wire::END_STOP && !ids.empty();
  const bool hide = stop_id && !request_.include_stop;
  const size_t before = text_.num_tokens();
  Output output;
  output.choice = index_;
  output.text = text_.Append(hide ? ids.first(count - 1) : ids);
  if (text_.stopped()) ids = ids.first(text_.num_tokens() - before);
  num_tokens_ += static_cast<int32_t>(ids.size());
  CountTokens(Clock::now(), ids.size());
  if (request_.return_token_ids) output.ids.assign(ids.begin(), ids.end());
  if (delta.extra != nullptr) AddLogprobs(delta, begin, ids, &output);
  output.num_tokens = num_tokens_;
  output.cached_tokens = cached_tokens_;
  output.sum_logprob = sum_logprob_;
  if (text_.stopped() || (last && delta.end != wire::END_NONE)) {
    SetFinish(delta, &output);
    CountEnd(output);
  }
  return output;
}

void Choice::AddLogprobs(const TokenDelta& delta, size_t begin, std::span<const int32_t> ids,
                         Output* output) {
  const wire::Extra& extra = *delta.extra;
  if (extra.cached_tokens() != 0) cached_tokens_ = static_cast<int32_t>(extra.cached_tokens());
  if (request_.sampling.num_top_logprobs() >= 0) {
    for (size_t i = 0; i < ids.size(); ++i) {
      const int at = delta.skip + static_cast<int>(begin + i);
      if (at >= extra.logprobs_size()) break;
      sum_logprob_ += extra.logprobs(at).logprob();
      if (request_.return_logprobs) {
        output->logprobs.push_back(FromWire(ids[i], extra.logprobs(at)));
      }
    }
  }
  if (begin != 0) return;
  const int num_known = static_cast<int>(prompt_ids_.size()) - 1;
  for (int i = 0; i < std::min(extra.prompt_logprobs_size(), num_known); ++i) {
    output->prompt_logprobs.push_back(FromWire(prompt_ids_[i + 1], extra.prompt_logprobs(i)));
  }
}

void Choice::SetFinish(const TokenDelta& delta, Output* output) {
  if (text_.stopped()) {
    output->finish = Finish::kStop;
    output->stop_string = request_.stop[text_.stop_index()];
    return;
  }
  output->text += text_.Flush();
  output->finish = delta.end == wire::END_LENGTH ? Finish::kLength : Finish::kStop;
  if (delta.end != wire::END_STOP || delta.ids.empty()) return;
  const int32_t id = delta.ids.back();
  const std::vector<int32_t> ends = tokenizer_.eos_ids();
  if (request_.ignore_eos || std::find(ends.begin(), ends.end(), id) == ends.end()) {
    output->stop_token_id = id;
  }
}

void Choice::CountTokens(Clock::time_point now, size_t count) {
  if (count == 0) return;
  metrics_.generation_tokens.Increment(static_cast<double>(count));
  if (last_token_ == Clock::time_point()) {
    first_token_ = now;
    metrics_.time_to_first_token.Observe(Seconds(now - request_.arrival));
  } else {
    metrics_.inter_token_latency.Observe(Seconds(now - last_token_));
  }
  last_token_ = now;
}

void Choice::CountEnd(const Output& output) {
  metrics_.CountEnd(output.finish == Finish::kStop ? "stop" : "length");
  metrics_.e2e_latency.Observe(Seconds(Clock::now() - request_.arrival));
  if (num_tokens_ > 1) {
    metrics_.time_per_output_token.Observe(Seconds(last_token_ - first_token_) / (num_tokens_ - 1));
  }
}

}  // namespace penstock::router
