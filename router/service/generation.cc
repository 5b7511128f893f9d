#include "router/service/generation.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace penstock::router {
namespace {

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
  to->num_tokens = from.num_tokens;
  to->cached_tokens = from.cached_tokens;
  to->sum_logprob = from.sum_logprob;
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
      max_waiting_bytes_(kMaxWaitingBytes * request_.num_choices) {
  for (int i = 0; i < request_.num_choices; ++i) sinks_.emplace_back(*this, i);
}

std::shared_ptr<TokenSink> Generation::Sink(int choice) {
  return {shared_from_this(), &sinks_[choice]};
}

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
  cancel();
}

bool Generation::Take(Output* output) {
  std::lock_guard lock(mutex_);
  if (outputs_.empty() || (delivery_ == Delivery::kWhole && !closed_)) return false;
  ChoiceSink& sink = sinks_[outputs_.front().choice];
  if (sink.waiting == &outputs_.front()) sink.waiting = nullptr;
  *output = std::move(outputs_.front());
  outputs_.pop_front();
  waiting_bytes_ = outputs_.empty() ? 0 : waiting_bytes_ - Bytes(*output);
  if (outputs_.empty()) announced_ = false;
  if (output->failure.ok()) {
    tokens_taken_ += output->num_tokens - std::exchange(sink.num_taken, output->num_tokens);
  }
  output->usage = {.completion_tokens = tokens_taken_,
                   .cached_tokens = std::max(cached_tokens_, 0)};
  output->last = closed_ && outputs_.empty();
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

SinkAction Generation::Advance(Choice* choice, const TokenDelta& delta) {
  {
    std::lock_guard lock(mutex_);
    if (closed_) return SinkAction::kStop;  // the client left, another choice failed
  }
  const size_t size = delta.ids.size();
  const size_t step = delivery_ == Delivery::kPerToken ? 1 : std::max<size_t>(size, 1);
  size_t begin = 0;
  do {
    const size_t count = std::min(step, size - begin);
    Output output = choice->Advance(delta, begin, count);
    const bool finished = output.finish != Finish::kNone;
    if (!Queue(std::move(output)) || finished) return SinkAction::kStop;
    begin += count;
  } while (begin < size);
  return SinkAction::kContinue;
}

bool Generation::Queue(Output output) {
  bool ended;
  {
    std::lock_guard lock(mutex_);
    if (closed_) return false;  // cancelled meanwhile
    cached_tokens_ =
        cached_tokens_ < 0 ? output.cached_tokens : std::min(cached_tokens_, output.cached_tokens);
    const bool finished = output.finish != Finish::kNone;
    const bool visible = finished || !output.text.empty() || !output.ids.empty() ||
                         !output.logprobs.empty() || !output.prompt_logprobs.empty();
    if (!visible) return true;  // half a character: the next output has it
    waiting_bytes_ += Bytes(output);
    ChoiceSink& sink = sinks_[output.choice];
    if (delivery_ != Delivery::kPerToken && sink.waiting != nullptr) {
      MergeInto(std::move(output), sink.waiting);
    } else {
      outputs_.push_back(std::move(output));
      sink.waiting = &outputs_.back();
    }
    if (finished) ++num_finished_;
    closed_ = ended = num_finished_ == num_choices();
    // (What is to be one output waits for us, not for the client.)
    const bool slow = delivery_ != Delivery::kWhole && waiting_bytes_ > max_waiting_bytes_;
    if (!ended && !slow) return true;
  }
  if (ended) {
    End("");
  } else {
    Close(ResourceExhausted("the client reads too slowly: more than {} MiB wait for it",
                            max_waiting_bytes_ >> 20),
          /*drop_waiting=*/true);
  }
  return false;
}

void Generation::Fail(const absl::Status& status) { Close(status, /*drop_waiting=*/false); }

void Generation::Close(const absl::Status& status, bool drop_waiting) {
  std::function<void()> cancel;
  {
    std::lock_guard lock(mutex_);
    if (std::exchange(closed_, true)) return;
    if (num_choices() > 1) cancel = std::move(cancel_);  // of the others
    if (drop_waiting) outputs_.clear();
    outputs_.emplace_back().failure = status;
  }
  if (cancel) cancel();
  End("error");
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
  int unfinished;
  {
    std::lock_guard lock(mutex_);
    on_end = std::exchange(on_end_, nullptr);
    cancel_ = nullptr;
    unfinished = num_choices() - num_finished_;
  }
  if (!on_end) return;
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - request_.arrival;
  for (int i = 0; i < unfinished; ++i) {
    metrics_.CountEnd(reason);
    metrics_.e2e_latency.Observe(time.count());
  }
  on_end();
}

}  // namespace penstock::router
