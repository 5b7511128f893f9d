// OpenAI's response bodies and stream chunks, written without JSON objects in between. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/status.h"
#include "router/api/http/openai_request.h"
#include "router/service/output.h"
#include "router/tokenizer/tokenizer.h"

namespace penstock::router {

// What a response says of its request.
struct ResponseFacts {
  ApiKind kind = ApiKind::kCompletion;
  std::string id;
  std::string model;
  int64_t created = 0;  // Unix time
  int32_t prompt_tokens = 0;
  bool continuous_usage = false;
  bool logprobs = false;
  // completions' echo: the prompt's text goes before the output's, and so do its log-probabilities.
  bool echo = false;
  int n = 1;  // choices
  std::string prompt_text;
  std::vector<int32_t> prompt_ids;
};

// Not thread-safe. The tokenizer outlives the writer.
class OpenAiWriter {
 public:
  OpenAiWriter(const Tokenizer& tokenizer, ResponseFacts facts);

  // Appends one chunk as a server-sent event. The first chunk of a chat's choice has the role, the
  // last one the finish_reason.
  void AppendChunk(const Output& output, std::string* out);
  // Appends the chunk that has usage and no choices.
  void AppendUsageChunk(const Usage& usage, std::string* out) const;
  // The body of a response that isn't streamed: a whole output for each choice.
  std::string Body(const std::vector<Output>& outputs, const Usage& usage);

 private:
  void AppendChoice(const Output& output, bool chunk, std::string* out);
  void AppendChatLogprobs(const Output& output, std::string* out) const;
  void AppendCompletionLogprobs(const Output& output, std::string* out);
  void AppendPromptLogprobs(const Output& output, std::string* out) const;
  void AppendUsage(const Usage& usage, std::string* out) const;
  void AppendToken(int32_t id, std::string* out) const;

  const Tokenizer& tokenizer_;
  const ResponseFacts facts_;
  std::string chunk_head_;  // up to "choices":
  struct Choice {
    bool first = true;
    size_t text_offset = 0;  // characters before the next token, for completions' log-probabilities
  };
  std::vector<Choice> choices_;
};

// {"error": {...}} and the HTTP status for it.
int HttpStatusOf(const absl::Status& status);
std::string ErrorBody(const absl::Status& status);

}  // namespace penstock::router
