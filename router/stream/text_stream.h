// Turns one request's token ids into text as they come: never half a character, and nothing that
// may still turn out to be part of a stop string.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "router/stream/stop_matcher.h"
#include "router/tokenizer/tokenizer.h"

namespace penstock::router {

struct TextStreamOptions {
  // Leave the text of control tokens out.
  bool skip_special = true;
  // Text ends before the first of these. Valid UTF-8; empty ones are ignored. They are looked for
  // in the text as it is emitted: one that names a control token is found with skip_special off
  // alone.
  std::vector<std::string> stop;
  // Text ends after the stop string instead.
  bool include_stop_str = false;
};

// All deltas and the last Flush together are Tokenizer::Decode of all the ids, up to the stop
// string, however the ids were cut into calls. Not thread-safe: one stream belongs to one thread at
// a time.
class TextStream {
 public:
  // `tokenizer` must outlive the stream.
  TextStream(const Tokenizer* tokenizer, const TextStreamOptions& options);

  // The text that these ids let go. Once a stop string was found: what comes before it, then
  // nothing.
  std::string Append(std::span<const int32_t> ids);

  // No more ids come: the text held back, with U+FFFD for a character that stayed incomplete. Empty
  // after a stop and when called again.
  std::string Flush();

  bool stopped() const { return stop_index_ >= 0; }
  // Which of the options' stop strings was found, -1 if none.
  int stop_index() const { return stop_index_; }
  // Ids taken so far. After a stop: up to and with the one that completed the stop string.
  size_t num_tokens() const { return num_tokens_; }

 private:
  // Moves whole characters from pending_bytes_ to held_text_ and looks for stop strings in them.
  void TakeText(bool is_end);
  void Match(size_t begin_of_new);
  // Cuts off and returns the part of held_text_ that can't belong to a stop string any more.
  std::string Release();

  const Tokenizer* tokenizer_;
  const bool skip_special_;
  const bool include_stop_str_;
  StopMatcher matcher_;
  std::string pending_bytes_;  // at most three bytes between calls: the beginning of a character
  std::string held_text_;      // not yet emitted
  int stop_index_ = -1;
  size_t num_tokens_ = 0;
};

}  // namespace penstock::router
