#include "router/stream/text_stream.h"

#include "router/tokenizer/utf8.h"

namespace penstock::router {

TextStream::TextStream(const Tokenizer* tokenizer, const TextStreamOptions& options)
    : tokenizer_(tokenizer),
      skip_special_(options.skip_special),
      include_stop_str_(options.include_stop_str),
      matcher_(options.stop) {}

std::string TextStream::Append(std::span<const int32_t> ids) {
  for (int32_t id : ids) {
    if (stopped()) break;
    ++num_tokens_;
    if (skip_special_ && tokenizer_->IsSpecial(id)) continue;
    pending_bytes_ += tokenizer_->TokenBytes(id);
    TakeText(/*is_end=*/false);
  }
  return Release();
}

std::string TextStream::Flush() {
  if (!stopped()) TakeText(/*is_end=*/true);
  std::string text = std::move(held_text_);
  held_text_.clear();
  return text;
}

void TextStream::TakeText(bool is_end) {
  const size_t begin_of_new = held_text_.size();
  pending_bytes_.erase(0, AppendUtf8(pending_bytes_, &held_text_));
  if (is_end && !pending_bytes_.empty()) {
    held_text_ += kReplacementCharacter;
    pending_bytes_.clear();
  }
  Match(begin_of_new);
}

void TextStream::Match(size_t begin_of_new) {
  const StopMatcher::Match match = matcher_.Feed(std::string_view(held_text_).substr(begin_of_new));
  if (match.stop_index < 0) return;
  stop_index_ = match.stop_index;
  const size_t stop_end = begin_of_new + match.end;
  held_text_.resize(include_stop_str_ ? stop_end : stop_end - match.length);
  pending_bytes_.clear();
}

std::string TextStream::Release() {
  std::string text = std::move(held_text_);
  held_text_.clear();
  if (!stopped() && matcher_.num_held() > 0) {
    const size_t keep_from = text.size() - matcher_.num_held();
    held_text_ = text.substr(keep_from);
    text.resize(keep_from);
  }
  return text;
}

}  // namespace penstock::router
