// OpenAI's request bodies, with vLLM's further parameters, as the router's own terms. Pure.
//
// Unknown members are ignored, as OpenAI does. Members that are known and that this server doesn't
// support are refused unless they have their default. Ranges are checked later, in Validate.
#pragma once

#include <string>

#include "router/api/http/json_fields.h"
#include "router/request/fields.h"

namespace penstock::router {

enum class ApiKind { kCompletion, kChat };

struct OpenAiRequest {
  RequestFields fields;
  bool stream = false;
  bool include_usage = false;     // a last chunk with usage and no choices
  bool continuous_usage = false;  // usage in every chunk
};

absl::StatusOr<OpenAiRequest> ParseOpenAi(ApiKind kind, const Json& body);

// The messages of a chat, also of /tokenize.
absl::StatusOr<ChatPrompt> ParseMessages(const Json& messages);

}  // namespace penstock::router
