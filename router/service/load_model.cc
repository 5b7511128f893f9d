#include "router/service/load_model.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "common/formats/gguf.h"
#include "common/formats/hf_config.h"
#include "router/tokenizer/hf_tokenizer_config.h"

namespace penstock::router {
namespace {

// Completions need neither a template nor Python: without one the model is served all the same.
absl::Status SetChat(absl::StatusOr<std::unique_ptr<ChatTemplate>> chat, ServedModel* model) {
  if (chat.ok()) {
    model->chat_template = *std::move(chat);
    return absl::OkStatus();
  }
  const absl::Status& status = chat.status();
  if (!absl::IsNotFound(status) && !absl::IsFailedPrecondition(status)) return status;
  if (absl::IsFailedPrecondition(status)) model->why_no_chat = Message(status);
  spdlog::warn("msg=\"no chat\" reason=\"{}\"", Message(status));
  return absl::OkStatus();
}

absl::Status LoadGguf(ServedModel* model) {
  ASSIGN_OR_RETURN(const auto file, GgufFile::Open(model->path));
  ASSIGN_OR_RETURN(model->tokenizer, Tokenizer::FromGguf(*file));
  RETURN_IF_ERROR(SetChat(ChatTemplate::FromGguf(*file), model));
  ASSIGN_OR_RETURN(const std::string_view architecture, file->GetString("general.architecture"));
  ASSIGN_OR_RETURN(const uint32_t context,
                   file->GetU32(fmt::format("{}.context_length", architecture)));
  model->context_length = static_cast<int32_t>(std::min<uint32_t>(context, INT32_MAX));
  model->vocab_size = model->tokenizer->vocab_size();
  return absl::OkStatus();
}

absl::Status LoadHf(bool tokenizer_optional, ServedModel* model) {
  ASSIGN_OR_RETURN(const HfConfig config, LoadHfConfig(model->path));
  model->context_length = config.max_position_embeddings;
  model->vocab_size = config.vocab_size;
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::FromHf(model->path, config);
  if (tokenizer_optional && absl::IsNotFound(tokenizer.status())) {
    spdlog::warn("msg=\"no text: clients must send token ids\" reason=\"{}\"",
                 Message(tokenizer.status()));
    model->tokenizer = Tokenizer::WithoutText(config);
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(tokenizer.status());
  model->tokenizer = *std::move(tokenizer);
  ASSIGN_OR_RETURN(const HfTokenizerConfig tokenizer_config, ReadHfTokenizerConfig(model->path));
  return SetChat(ChatTemplate::FromHf(tokenizer_config), model);
}

absl::Status LoadDefaults(ServedModel* model) {
  ASSIGN_OR_RETURN(const HfGenerationConfig file, ReadHfGenerationConfig(model->path));
  SamplingDefaults& defaults = model->defaults;
  defaults.temperature = file.temperature.value_or(defaults.temperature);
  defaults.top_p = file.top_p.value_or(defaults.top_p);
  defaults.min_p = file.min_p.value_or(defaults.min_p);
  defaults.repetition_penalty = file.repetition_penalty.value_or(defaults.repetition_penalty);
  defaults.top_k = file.top_k.value_or(defaults.top_k);
  defaults.max_new_tokens = file.max_new_tokens;
  if (const absl::Status status = CheckDefaults(defaults); !status.ok()) {
    return InvalidArgument("{}: {}, or start with --generation-config none", file.path,
                           Message(status));
  }
  if (!file.do_sample.value_or(true)) defaults.temperature = 0;
  if (defaults == SamplingDefaults()) return absl::OkStatus();
  spdlog::info(
      "msg=\"requests default to the model's sampling\" file={} temperature={} top_p={} min_p={} "
      "repetition_penalty={} top_k={} max_new_tokens={}",
      file.path, defaults.temperature, defaults.top_p, defaults.min_p, defaults.repetition_penalty,
      defaults.top_k, defaults.max_new_tokens ? std::to_string(*defaults.max_new_tokens) : "none");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ServedModel> LoadModel(const LoadModelOptions& options) {
  ServedModel model;
  model.path = options.path;
  if (model.path.size() > 1 && model.path.ends_with('/')) model.path.pop_back();
  const std::filesystem::path path(model.path);
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) {
    return NotFound(
        "{}: there is no such file or folder: give a GGUF file or the folder of a Hugging Face "
        "checkpoint",
        model.path);
  }
  const bool is_folder = IsHfCheckpoint(model.path);
  RETURN_IF_ERROR(is_folder ? LoadHf(options.tokenizer_optional, &model) : LoadGguf(&model));
  if (is_folder && options.use_generation_config) RETURN_IF_ERROR(LoadDefaults(&model));
  model.names = options.names;
  std::erase(model.names, "");
  if (model.names.empty()) {
    model.names = {(path.extension() == ".gguf" ? path.stem() : path.filename()).string()};
  }
  model.created = std::time(nullptr);
  return model;
}

}  // namespace penstock::router
