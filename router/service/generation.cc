#include "router/service/generation.h"

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

template <typename T>
void Append(std::vector<T> from, std::vector<T>* to) {
  if (to->empty()) {
    *to = std::move(from);
  } else {
    to->insert(to->end(), std::make_move_iterator(from.begin()),
               std::make_move_iterator(from.end()));
  }
}

void MergeInto(Output from, Output* to) {
  to->text += from.text;
  Append(std::move(from.ids), &to->ids);
  Append(std::move(from.logprobs), &to->logprobs);
  Append(std::move(from.prompt_logprobs), &to->prompt_logprobs);
  to->finish = from.finish;
  to->stop_string = std::move(from.stop_string);
  to->stop_token_id = from.stop_token_id;
  to->failure = std::move(from.failure);
  to->completion_tokens = from.completion_tokens;
  to->cached_tokens = from.cached_tokens;
}

size_t Bytes(const Output& output) {
  size_t bytes = output.text.size() + output.ids.size() * sizeof(int32_t);
  for (const auto* logprobs : {&output.logprobs, &output.prompt_logprobs}) {
    for (const TokenLogprob& logprob : *logprobs) {
      bytes += sizeof(logprob) + logprob.top.size() * sizeof(logprob.top[0]);
    }
  }
  return bytes;
}

double Seconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

Generation::Generation(GenerationRequest request, std::vector<int32_t> prompt_ids,
                       const Tokenizer& tokenizer, Metrics& metrics,
                       std::weak_ptr<OutputListener> listener, Delivery delivery)
    : request_(std::move(request)),
      prompt_ids_(std::move(prompt_ids)),
      tokenizer_(tokenizer),
      metrics_(metrics),
      listener_(std::move(listener)),
      delivery_(delivery),
      text_(&tokenizer, {.skip_special = request_.skip_special_tokens,
                         .stop = request_.stop,
                         .include_stop_str = request_.include_stop}) {}

bool Generation::Open(std::function<void()> on_end) {
  std::lock_guard lock(mutex_);
  if (closed_) return false;
  on_end_ = std::move(on_end);
  return true;
}

void Generation::SetCanceller(std::function<void()> cancel) {
  {
    std::lock_guard lock(mutex_);
    if (!closed_) {
      cancel_ = std::move(cancel);
      return;
    }
  }
  cancel();  // no-op if it has ended by itself
}

bool Generation::Take(Output* output) {
  std::lock_guard lock(mutex_);
  if (outputs_.empty()) return false;
  *output = std::move(outputs_.front());
  outputs_.pop_front();
  waiting_bytes_ = outputs_.empty() ? 0 : waiting_bytes_ - Bytes(*output);
  if (outputs_.empty()) announced_ = false;
  return true;
}

void Generation::Cancel() {
  std::function<void()> cancel;
  {
    std::lock_guard lock(mutex_);
    if (std::exchange(closed_, true)) return;
    cancel = std::move(cancel_);
    outputs_.clear();
  }
  if (cancel) cancel();
  End("abort");
}

SinkAction Generation::OnTokens(const TokenDelta& delta) {
  bool closed;
  {
    std::lock_guard lock(mutex_);
    closed = closed_;
  }
  if (closed) {  // the client left, or reads too slowly
    End("abort");
    return SinkAction::kStop;
  }
  if (delta.extra != nullptr && delta.extra->cached_tokens() != 0) {
    cached_tokens_ = static_cast<int32_t>(delta.extra->cached_tokens());
  }
  const size_t size = delta.ids.size();
  const size_t step = delivery_ == Delivery::kPerToken ? 1 : std::max<size_t>(size, 1);
  size_t begin = 0;
  do {
    const size_t count = std::min(step, size - begin);
    Output output;
    const bool ended = Advance(delta, begin, count, &output);
    const Finish finish = output.finish;
    Queue(std::move(output));
    if (ended) {
      End(finish == Finish::kStop ? "stop" : "length");
      return SinkAction::kStop;
    }
    begin += count;
  } while (begin < size);
  return SinkAction::kContinue;
}

bool Generation::Advance(const TokenDelta& delta, size_t begin, size_t count, Output* output) {
  const bool last = begin + count == delta.ids.size();
  std::span<const int32_t> ids = delta.ids.subspan(begin, count);
  // The id that stops a request is counted, but is no text.
  const bool stop_id = last && delta.end == wire::END_STOP && !ids.empty();
  const bool hide = stop_id && !request_.include_stop;
  const size_t before = text_.num_tokens();
  output->text = text_.Append(hide ? ids.first(count - 1) : ids);
  if (text_.stopped()) ids = ids.first(text_.num_tokens() - before);
  completion_tokens_ += static_cast<int32_t>(ids.size());
  CountTokens(Clock::now(), ids.size());
  const bool ended = text_.stopped() || (last && delta.end != wire::END_NONE);
  if (ended) SetFinish(delta, output);
  output->completion_tokens = completion_tokens_;
  output->cached_tokens = cached_tokens_;
  if (request_.return_token_ids) output->ids.assign(ids.begin(), ids.end());
  if (delta.extra == nullptr) return ended;
  const wire::Extra& extra = *delta.extra;
  if (request_.sampling.num_top_logprobs() >= 0) {
    for (size_t i = 0; i < ids.size(); ++i) {
      const int at = delta.skip + static_cast<int>(begin + i);
      if (at < extra.logprobs_size()) {
        output->logprobs.push_back(FromWire(ids[i], extra.logprobs(at)));
      }
    }
  }
  if (begin == 0) {
    for (int i = 0; i < extra.prompt_logprobs_size() && i + 1 < prompt_tokens(); ++i) {
      output->prompt_logprobs.push_back(FromWire(prompt_ids_[i + 1], extra.prompt_logprobs(i)));
    }
  }
  return ended;
}

void Generation::SetFinish(const TokenDelta& delta, Output* output) {
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

void Generation::OnFailure(const absl::Status& status) {
  bool closed;
  {
    std::lock_guard lock(mutex_);
    closed = closed_;
  }
  if (closed) return End("abort");  // the client left, or reads too slowly
  Output output;
  output.failure = status;
  output.completion_tokens = completion_tokens_;
  output.cached_tokens = cached_tokens_;
  Queue(std::move(output));
  End("error");
}

void Generation::CountTokens(Clock::time_point now, size_t count) {
  if (count == 0) return;
  metrics_.generation_tokens.Increment(static_cast<double>(count));
  if (last_token_ == Clock::time_point()) {
    first_token_ = now;
    metrics_.time_to_first_token.Observe(Seconds(now - arrival_));
  } else {
    metrics_.inter_token_latency.Observe(Seconds(now - last_token_));
  }
  last_token_ = now;
}

void Generation::Queue(Output output) {
  const bool visible = output.ended() || !output.text.empty() || !output.ids.empty() ||
                       !output.logprobs.empty() || !output.prompt_logprobs.empty();
  if (!visible) return;  // half a character: the next output has it
  std::lock_guard lock(mutex_);
  if (closed_) return;  // cancelled meanwhile
  waiting_bytes_ += Bytes(output);
  if (waiting_bytes_ > kMaxWaitingBytes && !output.ended()) {
    output.failure = ResourceExhausted("the client reads too slowly: {} MiB wait for it",
                                       kMaxWaitingBytes >> 20);
    outputs_.clear();
  }
  closed_ = output.ended();
  if (delivery_ != Delivery::kPerToken && !outputs_.empty()) {
    MergeInto(std::move(output), &outputs_.back());
  } else {
    outputs_.push_back(std::move(output));
  }
}

void Generation::Flush() {
  {
    std::lock_guard lock(mutex_);
    if (outputs_.empty() || announced_) return;
    if (delivery_ == Delivery::kWhole && !closed_) return;
    announced_ = true;
  }
  if (const auto listener = listener_.lock()) listener->OnOutputReady();
}

void Generation::End(const char* reason) {
  std::function<void()> on_end;
  {
    std::lock_guard lock(mutex_);
    on_end = std::exchange(on_end_, nullptr);
    cancel_ = nullptr;
  }
  if (!on_end) return;
  metrics_.CountEnd(reason);
  const Clock::time_point now = Clock::now();
  metrics_.e2e_latency.Observe(Seconds(now - arrival_));
  // completion_tokens_ belongs to the receive thread; an abort comes from another one.
  if (std::string_view(reason) != "abort" && completion_tokens_ > 1) {
    metrics_.time_per_output_token.Observe(Seconds(last_token_ - first_token_) /
                                           (completion_tokens_ - 1));
  }
  on_end();
}

}  // namespace penstock::router
