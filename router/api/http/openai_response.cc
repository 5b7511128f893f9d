#include "router/api/http/openai_response.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "router/api/http/json_text.h"
#include "router/request/validate.h"
#include "router/tokenizer/utf8.h"

namespace penstock::router {
namespace {

template <typename... Args>
void Print(std::string* out, fmt::format_string<Args...> format, Args&&... args) {
  fmt::format_to(std::back_inserter(*out), format, std::forward<Args>(args)...);
}

const char* Object(ApiKind kind, bool chunk) {
  if (kind == ApiKind::kCompletion) return "text_completion";
  return chunk ? "chat.completion.chunk" : "chat.completion";
}

size_t CountCharacters(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

}  // namespace

OpenAiWriter::OpenAiWriter(const Tokenizer& tokenizer, ResponseFacts facts)
    : tokenizer_(tokenizer), facts_(std::move(facts)), choices_(facts_.n) {
  chunk_head_ =
      fmt::format("data: {{\"id\":{},\"object\":\"{}\",\"created\":{},\"model\":{},\"choices\":[",
                  JsonString(facts_.id), Object(facts_.kind, /*chunk=*/true), facts_.created,
                  JsonString(facts_.model));
}

void OpenAiWriter::AppendChunk(const Output& output, std::string* out) {
  out->append(chunk_head_);
  AppendChoice(output, /*chunk=*/true, out);
  out->push_back(']');
  if (facts_.continuous_usage) {
    out->append(",\"usage\":");
    AppendUsage(output.usage, out);
  }
  out->append("}\n\n");
  choices_[output.choice].first = false;
}

void OpenAiWriter::AppendUsageChunk(const Usage& usage, std::string* out) const {
  out->append(chunk_head_);
  out->append("],\"usage\":");
  AppendUsage(usage, out);
  out->append("}\n\n");
}

std::string OpenAiWriter::Body(const std::vector<Output>& outputs, const Usage& usage) {
  std::string body =
      fmt::format("{{\"id\":{},\"object\":\"{}\",\"created\":{},\"model\":{},\"choices\":[",
                  JsonString(facts_.id), Object(facts_.kind, /*chunk=*/false), facts_.created,
                  JsonString(facts_.model));
  const char* comma = "";
  for (const Output& output : outputs) {
    body += std::exchange(comma, ",");
    AppendChoice(output, /*chunk=*/false, &body);
  }
  body += "],\"usage\":";
  AppendUsage(usage, &body);
  body += '}';
  return body;
}

void OpenAiWriter::AppendChoice(const Output& output, bool chunk, std::string* out) {
  const bool chat = facts_.kind == ApiKind::kChat;
  const bool first = choices_[output.choice].first;
  Print(out, "{{\"index\":{},", output.choice);
  if (chat) {
    out->append(chunk ? "\"delta\":{" : "\"message\":{");
    if (first) out->append("\"role\":\"assistant\",");
    out->append("\"content\":");
    AppendJsonString(output.text, out);
    out->push_back('}');
  } else {
    out->append("\"text\":");
    AppendJsonString(facts_.echo && first ? facts_.prompt_text + output.text : output.text, out);
  }
  out->append(",\"logprobs\":");
  if (!facts_.logprobs || (output.logprobs.empty() && !first)) {
    out->append("null");
  } else if (chat) {
    AppendChatLogprobs(output, out);
  } else {
    AppendCompletionLogprobs(output, out);
  }
  if (!output.ids.empty()) Print(out, ",\"token_ids\":[{}]", fmt::join(output.ids, ","));
  if (!output.prompt_logprobs.empty() && !facts_.echo) AppendPromptLogprobs(output, out);
  if (output.finish == Finish::kNone) {
    out->append(",\"finish_reason\":null}");
    return;
  }
  Print(out, ",\"finish_reason\":\"{}\",\"stop_reason\":",
        output.finish == Finish::kStop ? "stop" : "length");
  if (output.stop_token_id >= 0) {
    Print(out, "{}", output.stop_token_id);
  } else if (!output.stop_string.empty()) {
    AppendJsonString(output.stop_string, out);
  } else {
    out->append("null");
  }
  out->push_back('}');
}

void OpenAiWriter::AppendToken(int32_t id, std::string* out) const {
  AppendJsonString(ReplaceInvalidUtf8(tokenizer_.TokenBytes(id)), out);
}

void OpenAiWriter::AppendChatLogprobs(const Output& output, std::string* out) const {
  const auto entry = [&](int32_t id, float logprob) {
    out->append("{\"token\":");
    AppendToken(id, out);
    out->append(",\"logprob\":");
    AppendLogprob(logprob, out);
    out->append(",\"bytes\":[");
    const char* comma = "";
    for (const char byte : tokenizer_.TokenBytes(id)) {
      Print(out, "{}{}", std::exchange(comma, ","), static_cast<unsigned char>(byte));
    }
    out->push_back(']');
  };
  out->append("{\"content\":[");
  const char* comma = "";
  for (const TokenLogprob& token : output.logprobs) {
    out->append(std::exchange(comma, ","));
    entry(token.id, token.logprob);
    out->append(",\"top_logprobs\":[");
    const char* inner = "";
    for (const auto& [id, logprob] : token.top) {
      out->append(std::exchange(inner, ","));
      entry(id, logprob);
      out->push_back('}');
    }
    out->append("]}");
  }
  out->append("]}");
}

// {"tokens": [...], "token_logprobs": [...], "top_logprobs": [{...}], "text_offset": [...]}
void OpenAiWriter::AppendCompletionLogprobs(const Output& output, std::string* out) {
  std::vector<const TokenLogprob*> rows;
  std::vector<int32_t> ids;
  Choice& choice = choices_[output.choice];
  if (facts_.echo && choice.first) {
    for (const int32_t id : facts_.prompt_ids) ids.push_back(id);
    rows.push_back(nullptr);  // nothing predicts the first
    for (const TokenLogprob& row : output.prompt_logprobs) rows.push_back(&row);
    rows.resize(ids.size());
  }
  for (const TokenLogprob& row : output.logprobs) {
    ids.push_back(row.id);
    rows.push_back(&row);
  }
  std::string tokens, logprobs, tops, offsets;
  const char* comma = "";
  for (size_t i = 0; i < ids.size(); ++i, comma = ",") {
    for (std::string* list : {&tokens, &logprobs, &tops, &offsets}) list->append(comma);
    AppendToken(ids[i], &tokens);
    Print(&offsets, "{}", choice.text_offset);
    if (!tokenizer_.IsSpecial(ids[i])) {
      choice.text_offset += CountCharacters(tokenizer_.TokenBytes(ids[i]));
    }
    if (rows[i] == nullptr) {
      logprobs += "null";
      tops += "null";
      continue;
    }
    AppendLogprob(rows[i]->logprob, &logprobs);
    tops += '{';
    const char* inner = "";
    for (const auto& [id, logprob] : rows[i]->top) {
      tops += std::exchange(inner, ",");
      AppendToken(id, &tops);
      tops += ':';
      AppendLogprob(logprob, &tops);
    }
    tops += '}';
  }
  Print(out,
        "{{\"tokens\":[{}],\"token_logprobs\":[{}],\"top_logprobs\":[{}],\"text_offset\":[{}]}}",
        tokens, logprobs, tops, offsets);
}

// As vLLM: a list with null for the first id, then {"<id>": {"logprob", "rank", "decoded_token"}}.
void OpenAiWriter::AppendPromptLogprobs(const Output& output, std::string* out) const {
  out->append(",\"prompt_logprobs\":[null");
  for (const TokenLogprob& row : output.prompt_logprobs) {
    out->append(",{");
    const auto entry = [&](int32_t id, float logprob, int rank, const char* comma) {
      Print(out, "{}\"{}\":{{\"logprob\":", comma, id);
      AppendLogprob(logprob, out);
      Print(out, ",\"rank\":{},\"decoded_token\":", rank);
      AppendToken(id, out);
      out->push_back('}');
    };
    entry(row.id, row.logprob, row.rank, "");
    int rank = 0;
    for (const auto& [id, logprob] : row.top) {
      ++rank;
      if (id != row.id) entry(id, logprob, rank, ",");
    }
    out->push_back('}');
  }
  out->push_back(']');
}

void OpenAiWriter::AppendUsage(const Usage& usage, std::string* out) const {
  Print(out,
        "{{\"prompt_tokens\":{},\"completion_tokens\":{},\"total_tokens\":{},"
        "\"prompt_tokens_details\":{{\"cached_tokens\":{}}}}}",
        facts_.prompt_tokens, usage.completion_tokens,
        facts_.prompt_tokens + usage.completion_tokens, usage.cached_tokens);
}

int HttpStatusOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return 200;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kOutOfRange:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kCancelled:
      return 499;
    case absl::StatusCode::kUnimplemented:
      return 501;
    case absl::StatusCode::kUnavailable:
      return 503;
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

std::string ErrorBody(const absl::Status& status) {
  const char* type = "server_error";
  const char* code = "null";
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kOutOfRange:
      type = "invalid_request_error";
      break;
    case absl::StatusCode::kNotFound:
      type = "invalid_request_error";
      code = FieldOf(status) == "model" ? "\"model_not_found\"" : "\"not_found\"";
      break;
    case absl::StatusCode::kUnauthenticated:
      type = "invalid_request_error";
      code = "\"invalid_api_key\"";
      break;
    case absl::StatusCode::kResourceExhausted:
      type = "rate_limit_error";
      code = "\"rate_limit_exceeded\"";
      break;
    case absl::StatusCode::kUnavailable:
      type = "service_unavailable_error";
      break;
    case absl::StatusCode::kDeadlineExceeded:
      type = "timeout_error";
      code = "\"deadline_exceeded\"";
      break;
    default:
      break;
  }
  const std::string field = FieldOf(status);
  return fmt::format("{{\"error\":{{\"message\":{},\"type\":\"{}\",\"param\":{},\"code\":{}}}}}",
                     JsonString(ReplaceInvalidUtf8(Message(status))), type,
                     field.empty() ? "null" : JsonString(field), code);
}

}  // namespace penstock::router
