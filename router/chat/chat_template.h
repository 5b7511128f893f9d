// A model's own chat template (Jinja2), rendered by the real Jinja2, byte for byte as transformers'
// apply_chat_template does it.
//
// The template runs sandboxed inside Debian's Python, embedded in this process: it can't reach
// files, modules or the process, it is ended when it takes too long, and its text has a greatest
// length. Rendering takes 0.1 to 0.5 ms and Python's lock: renderings of several threads take
// turns.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"
#include "common/formats/gguf.h"
#include "router/tokenizer/hf_tokenizer_config.h"

namespace penstock::router {

struct ChatTemplateLimits {
  std::chrono::milliseconds time{10000};
  size_t max_chars = 64 << 20;
};

// Compiled once; Render is thread-safe. The first one made in a process starts Python (0.1 s).
class ChatTemplate {
 public:
  // nlohmann::ordered_json keeps the order of a client's keys, which shows where a template prints
  // tools as JSON. A plain nlohmann::json converts, with its keys sorted.
  using Json = nlohmann::ordered_json;

  // The template in tokenizer.chat_template (and tool_use's, if there is one, for calls with
  // tools). NotFound if the file has none; InvalidArgument if it isn't valid Jinja2;
  // FailedPrecondition if Debian's Python or Jinja2 isn't installed.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> FromGguf(
      const GgufFile& file, const ChatTemplateLimits& limits = {});

  // The templates of a Hugging Face checkpoint, with its special tokens. NotFound if there is none
  // that is named "default".
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> FromHf(
      const HfTokenizerConfig& config, const ChatTemplateLimits& limits = {});

  // `sources` maps "default", and perhaps "tool_use", to templates; `special_tokens` maps names
  // such as "bos_token" to their text. Both are objects of strings.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Create(
      const Json& sources, const Json& special_tokens, const ChatTemplateLimits& limits = {});

  ~ChatTemplate();
  ChatTemplate(const ChatTemplate&) = delete;
  ChatTemplate& operator=(const ChatTemplate&) = delete;

  // `messages`: an array of objects. `tools`: an array, or null for none. `kwargs`: further
  // variables for the template, an object, or null for none; they go before the special tokens of
  // that name. The text holds BOS where the template writes it: encode it with parse_special and
  // add no other. InvalidArgument with the template's own message if it refuses (roles must
  // alternate ...) or fails on the messages, takes too long or writes too much.
  absl::StatusOr<std::string> Render(const Json& messages, const Json& tools,
                                     bool add_generation_prompt, const Json& kwargs) const;

 private:
  struct Renderer;
  ChatTemplate(std::unique_ptr<Renderer> renderer, const ChatTemplateLimits& limits);

  const std::unique_ptr<Renderer> renderer_;
  const ChatTemplateLimits limits_;
};

}  // namespace penstock::router
