#include "router/api/http/openai_request.h"

#include <charconv>
#include <utility>

#include "router/request/validate.h"

namespace penstock::router {
namespace {

void ParseStop(JsonFields& json, RequestFields* fields) {
  const Json* stop = json.Find("stop");
  if (stop == nullptr) return;
  if (stop->is_string()) {
    fields->stop.push_back(stop->get<std::string>());
    return;
  }
  if (!stop->is_array()) return json.Fail("stop", "stop must be a string or an array of strings");
  for (const Json& item : *stop) {
    if (!item.is_string()) {
      return json.Fail("stop", "stop must be a string or an array of strings");
    }
    fields->stop.push_back(item.get<std::string>());
  }
}

void ParseLogitBias(JsonFields& json, RequestFields* fields) {
  const Json* biases = json.Find("logit_bias");
  if (biases == nullptr) return;
  const char* form = "logit_bias must be an object of token ids and numbers: {\"42\": -1.5}";
  if (!biases->is_object()) return json.Fail("logit_bias", form);
  for (const auto& [key, bias] : biases->items()) {
    int64_t id = 0;
    const char* end = key.data() + key.size();
    const auto [parsed, error] = std::from_chars(key.data(), end, id);
    if (error != std::errc() || parsed != end || !bias.is_number()) {
      return json.Fail("logit_bias", form);
    }
    fields->logit_bias.emplace_back(id, bias.get<double>());
  }
}

void ParseSeed(JsonFields& json, RequestFields* fields) {
  const Json* seed = json.Find("seed");
  if (seed == nullptr) return;
  if (seed->is_number_unsigned()) {
    fields->seed = seed->get<uint64_t>();
  } else if (seed->is_number_integer()) {
    fields->seed = static_cast<uint64_t>(seed->get<int64_t>());
  } else {
    json.Fail("seed", "seed must be an integer");
  }
}

void ParseSampling(JsonFields& json, RequestFields* fields) {
  fields->temperature = json.Number("temperature");
  fields->top_p = json.Number("top_p");
  fields->min_p = json.Number("min_p");
  fields->repetition_penalty = json.Number("repetition_penalty");
  fields->presence_penalty = json.Number("presence_penalty");
  fields->frequency_penalty = json.Number("frequency_penalty");
  fields->top_k = json.Integer("top_k");
  fields->min_tokens = json.Integer("min_tokens");
  fields->max_tokens = json.Integer("max_tokens");
  fields->n = json.Integer("n");
  fields->prompt_logprobs = json.Integer("prompt_logprobs");
  fields->stop_token_ids = json.Integers("stop_token_ids");
  fields->ignore_eos = json.Bool("ignore_eos").value_or(false);
  fields->include_stop = json.Bool("include_stop_str_in_output").value_or(false);
  fields->skip_special_tokens = json.Bool("skip_special_tokens").value_or(true);
  fields->return_token_ids = json.Bool("return_token_ids").value_or(false);
  fields->return_text = true;
  fields->add_special_tokens = json.Bool("add_special_tokens");
  fields->priority = json.Integer("priority").value_or(0);
  fields->timeout = json.Number("timeout");
  fields->cache_salt = json.String("cache_salt").value_or("");
  fields->skip_prefix_cache = json.Bool("skip_prefix_cache").value_or(false);
  fields->tenant = json.String("user").value_or("");
  const std::optional<std::string> identifier = json.String("safety_identifier");
  if (fields->tenant.empty()) fields->tenant = identifier.value_or("");
  ParseSeed(json, fields);
  ParseStop(json, fields);
  ParseLogitBias(json, fields);
}

void RefuseUnsupported(ApiKind kind, JsonFields& json) {
  json.Refuse("use_beam_search", {"false"});
  json.Refuse("response_format", {R"({"type":"text"})"});
  json.Refuse("structured_outputs", {"{}"});
  json.Refuse("guided_json", {});
  json.Refuse("guided_regex", {});
  json.Refuse("guided_choice", {});
  json.Refuse("guided_grammar", {});
  if (kind == ApiKind::kCompletion) {
    json.Refuse("suffix", {"\"\""});
    return;
  }
  json.Refuse("best_of", {"1"});
  json.Refuse("tools", {"[]"});
  json.Refuse("tool_choice", {"\"none\"", "\"auto\""});
  json.Refuse("functions", {"[]"});
  json.Refuse("function_call", {"\"none\"", "\"auto\""});
  json.Refuse("modalities", {"[\"text\"]"});
  json.Refuse("audio", {});
  json.Refuse("echo", {"false"});
  json.Refuse("continue_final_message", {"false"});
}

// prompt: a string, an array of ids, or an array that holds one of these.
void ParsePrompt(JsonFields& json, RequestFields* fields) {
  const Json* prompt = json.Find("prompt");
  if (prompt == nullptr) return;
  if (prompt->is_array() && !prompt->empty() &&
      (prompt->front().is_array() || prompt->front().is_string())) {
    if (prompt->size() != 1) {
      return json.Fail("prompt", fmt::format("prompt has {} prompts: give one; send a request for "
                                             "each",
                                             prompt->size()));
    }
    prompt = &prompt->front();
  }
  if (prompt->is_string()) {
    fields->prompt = prompt->get<std::string>();
    return;
  }
  const char* form = "prompt must be a string or an array of token ids";
  if (!prompt->is_array()) return json.Fail("prompt", form);
  TokenPrompt ids;
  ids.reserve(prompt->size());
  for (const Json& item : *prompt) {
    const std::optional<int64_t> id = JsonFields::IntegerOf(item);
    if (!id) return json.Fail("prompt", form);
    ids.push_back(*id);
  }
  fields->prompt = std::move(ids);
}

absl::StatusOr<std::string> ParseContent(const Json& message, const std::string& path) {
  const auto it = message.find("content");
  if (it == message.end() || it->is_null()) return std::string();
  if (it->is_string()) return it->get<std::string>();
  const std::string field = path + "content";
  if (!it->is_array()) {
    return FieldError(field, field + " must be a string or an array of text parts");
  }
  std::string content;
  for (const Json& part : *it) {
    const bool text = part.is_object() && part.contains("text") && part["text"].is_string() &&
                      part.value("type", Json("text")) == "text";
    if (!text) {
      return FieldError(field, field +
                                   " has a part that is not text: this model takes text alone, "
                                   "as {\"type\": \"text\", \"text\": \"...\"}");
    }
    if (!content.empty()) content += '\n';
    content += part["text"].get_ref<const std::string&>();
  }
  return content;
}

void ParseStreaming(JsonFields& json, OpenAiRequest* request) {
  request->stream = json.Bool("stream").value_or(false);
  const Json* options = json.Find("stream_options");
  if (options == nullptr) return;
  if (!options->is_object()) return json.Fail("stream_options", "stream_options must be an object");
  if (!request->stream) {
    return json.Fail("stream_options",
                     "stream_options is for streams alone: set stream, or leave "
                     "it out");
  }
  JsonFields fields(*options, "stream_options.");
  request->include_usage = fields.Bool("include_usage").value_or(false);
  request->continuous_usage = fields.Bool("continuous_usage_stats").value_or(false);
  if (!fields.status().ok()) json.Fail("stream_options", Message(fields.status()));
}

}  // namespace

absl::StatusOr<ChatPrompt> ParseMessages(const Json& messages) {
  if (!messages.is_array()) return FieldError("messages", "messages must be an array of objects");
  ChatPrompt turns;
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string path = fmt::format("messages[{}].", i);
    const Json& message = messages[i];
    if (!message.is_object()) return FieldError("messages", path + " must be an object");
    JsonFields fields(message, path);
    std::optional<std::string> role = fields.String("role");
    fields.Refuse("tool_calls", {"[]"});
    RETURN_IF_ERROR(fields.status());
    if (!role)
      return FieldError(path + "role", path + "role is missing: give \"user\" or the like");
    ASSIGN_OR_RETURN(std::string content, ParseContent(message, path));
    turns.push_back({std::move(*role), std::move(content)});
  }
  return turns;
}

absl::StatusOr<OpenAiRequest> ParseOpenAi(ApiKind kind, const Json& body) {
  OpenAiRequest request;
  RequestFields& fields = request.fields;
  JsonFields json(body);
  fields.model = json.String("model").value_or("");
  fields.request_id = json.String("request_id").value_or("");
  ParseSampling(json, &fields);
  RefuseUnsupported(kind, json);
  ParseStreaming(json, &request);
  if (kind == ApiKind::kCompletion) {
    ParsePrompt(json, &fields);
    fields.logprobs = json.Integer("logprobs");
    fields.echo = json.Bool("echo").value_or(false);
    if (fields.echo && fields.logprobs) fields.prompt_logprobs = fields.logprobs;
    fields.best_of = json.Integer("best_of");
    if (request.stream && fields.best_of.value_or(1) > fields.n.value_or(1)) {
      json.Fail("best_of", "best_of above n is not for streams: which are best shows at the end");
    }
    RETURN_IF_ERROR(json.status());
    return request;
  }
  if (const auto max_tokens = json.Integer("max_completion_tokens")) fields.max_tokens = max_tokens;
  fields.add_generation_prompt = json.Bool("add_generation_prompt").value_or(true);
  const bool logprobs = json.Bool("logprobs").value_or(false);
  const std::optional<int64_t> top = json.Integer("top_logprobs");
  if (logprobs) fields.logprobs = top.value_or(0);
  if (!logprobs && top.value_or(0) != 0) {
    json.Fail("top_logprobs", "top_logprobs needs logprobs: set logprobs to true");
  }
  const Json* messages = json.Find("messages");
  if (messages == nullptr) json.Fail("messages", "messages is missing: give at least one message");
  RETURN_IF_ERROR(json.status());
  ASSIGN_OR_RETURN(fields.prompt, ParseMessages(*messages));
  return request;
}

}  // namespace penstock::router
