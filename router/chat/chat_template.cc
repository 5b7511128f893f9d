#include "router/chat/chat_template.h"

#include <string_view>
#include <utility>
#include <vector>

#include "common/status.h"
#include "fmt/format.h"
#include "router/chat/python.h"
#include "router/chat/watchdog.h"

namespace penstock::router {
namespace {

namespace py = pybind11;

std::string Dump(const ChatTemplate::Json& json) {
  return json.dump(-1, ' ', false, ChatTemplate::Json::error_handler_t::replace);
}

absl::Status CheckArguments(const ChatTemplate::Json& messages, const ChatTemplate::Json& tools,
                            const ChatTemplate::Json& kwargs) {
  if (!messages.is_array() || messages.empty()) {
    return absl::InvalidArgumentError("messages must be an array of at least one message");
  }
  for (const auto& message : messages) {
    if (!message.is_object()) {
      return absl::InvalidArgumentError("each of messages must be an object with role and content");
    }
  }
  if (!tools.is_null() && !tools.is_array()) {
    return absl::InvalidArgumentError("tools must be an array");
  }
  if (!kwargs.is_null() && !kwargs.is_object()) {
    return absl::InvalidArgumentError("the chat template's arguments must be an object");
  }
  for (const char* name : {"messages", "tools", "add_generation_prompt"}) {
    if (kwargs.contains(name)) {
      return absl::InvalidArgumentError(fmt::format(
          "\"{}\" can't be among the chat template's arguments: it has its own field", name));
    }
  }
  return absl::OkStatus();
}

// The texts of the special tokens, under the names that templates use.
absl::StatusOr<ChatTemplate::Json> SpecialTokens(const GgufFile& file) {
  ChatTemplate::Json special_tokens = ChatTemplate::Json::object();
  ASSIGN_OR_RETURN(const auto tokens, file.FindArray<std::string_view>("tokenizer.ggml.tokens"));
  constexpr std::pair<const char*, const char*> kNames[] = {
      {"bos_token", "tokenizer.ggml.bos_token_id"},
      {"eos_token", "tokenizer.ggml.eos_token_id"},
      {"unk_token", "tokenizer.ggml.unknown_token_id"},
      {"pad_token", "tokenizer.ggml.padding_token_id"},
  };
  for (const auto& [name, key] : kNames) {
    ASSIGN_OR_RETURN(const auto id, file.FindU32(key));
    if (id.has_value() && tokens.has_value() && *id < tokens->size()) {
      special_tokens[name] = std::string((*tokens)[*id]);
    }
  }
  return special_tokens;
}

// An error says which file it is about.
absl::StatusOr<std::unique_ptr<ChatTemplate>> Named(
    const std::string& path, absl::StatusOr<std::unique_ptr<ChatTemplate>> result) {
  if (result.ok()) return result;
  return absl::Status(result.status().code(),
                      fmt::format("{}: {}", path, Message(result.status())));
}

}  // namespace

struct ChatTemplate::Renderer {
  py::object object;      // renderer.py's Renderer
  py::object time_limit;  // its class TimeLimit

  ~Renderer() {
    py::gil_scoped_acquire gil;
    object = py::object();
    time_limit = py::object();
  }
};

ChatTemplate::ChatTemplate(std::unique_ptr<Renderer> renderer, const ChatTemplateLimits& limits)
    : renderer_(std::move(renderer)), limits_(limits) {}

ChatTemplate::~ChatTemplate() = default;

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::FromGguf(
    const GgufFile& file, const ChatTemplateLimits& limits) {
  ASSIGN_OR_RETURN(const auto source, file.FindString("tokenizer.chat_template"));
  if (!source.has_value()) {
    return absl::NotFoundError(fmt::format(
        "{}: the model has no chat template (tokenizer.chat_template): use completions, "
        "or a model made for chat",
        file.path()));
  }
  Json sources = {{"default", std::string(*source)}};
  ASSIGN_OR_RETURN(const auto tool_use, file.FindString("tokenizer.chat_template.tool_use"));
  if (tool_use.has_value()) sources["tool_use"] = std::string(*tool_use);
  ASSIGN_OR_RETURN(const Json special_tokens, SpecialTokens(file));
  return Named(file.path(), Create(sources, special_tokens, limits));
}

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::FromHf(
    const HfTokenizerConfig& config, const ChatTemplateLimits& limits) {
  if (!config.chat_templates.contains("default")) {
    std::string others;
    for (const auto& [name, source] : config.chat_templates) {
      others += fmt::format("{}\"{}\"", others.empty() ? ", only " : ", ", name);
    }
    return NotFound(
        "{}: the model has no chat template (chat_template, or chat_template.jinja beside it){}: "
        "use completions, or a model made for chat",
        config.path, others);
  }
  return Named(config.path, Create(config.chat_templates, config.special_tokens, limits));
}

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Create(
    const Json& sources, const Json& special_tokens, const ChatTemplateLimits& limits) {
  ASSIGN_OR_RETURN(const py::handle module, RendererModule());
  py::gil_scoped_acquire gil;
  try {
    const RunLimit limit(limits.time, module.attr("TimeLimit"));
    const py::tuple result = module.attr("compile_templates")(Dump(sources), Dump(special_tokens));
    const py::object object = result[0];
    if (object.is_none()) {
      return absl::InvalidArgumentError(
          fmt::format("the chat template isn't valid: {}", result[1].cast<std::string>()));
    }
    return std::unique_ptr<ChatTemplate>(new ChatTemplate(
        std::make_unique<Renderer>(Renderer{object, module.attr("TimeLimit")}), limits));
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(
        fmt::format("the chat template can't be compiled: {}", error.what()));
  }
}

absl::StatusOr<std::string> ChatTemplate::Render(const Json& messages, const Json& tools,
                                                 bool add_generation_prompt,
                                                 const Json& kwargs) const {
  RETURN_IF_ERROR(CheckArguments(messages, tools, kwargs));
  const std::string messages_json = Dump(messages);
  const std::string tools_json = Dump(tools);
  const std::string kwargs_json = kwargs.is_null() ? "{}" : Dump(kwargs);

  py::gil_scoped_acquire gil;
  bool rendered = false;
  std::string text;
  bool timed_out = false;
  {
    const RunLimit limit(limits_.time, renderer_->time_limit);
    try {
      const py::tuple result = renderer_->object.attr("render")(
          messages_json, tools_json, add_generation_prompt, kwargs_json, limits_.max_chars);
      rendered = result[0].cast<bool>();
      text = result[1].cast<std::string>();
    } catch (const std::exception& error) {
      rendered = false;  // TimeLimit, or text that isn't UTF-8
      text = error.what();
    }
    timed_out = limit.Fired();
  }
  if (timed_out) {
    return absl::InvalidArgumentError(fmt::format(
        "the chat template took more than {} ms for these messages", limits_.time.count()));
  }
  if (!rendered) {
    return absl::InvalidArgumentError(fmt::format("the chat template refuses: {}", text));
  }
  return text;
}

}  // namespace penstock::router
