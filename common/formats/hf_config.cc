#include "common/formats/hf_config.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "common/formats/json_file.h"
#include "common/status.h"

namespace penstock {
namespace {

using nlohmann::json;

constexpr int64_t kMaxSize = int64_t{1} << 24;

absl::StatusOr<int> Checked(const HfConfig& config, std::string_view key, int64_t value) {
  if (value >= 1 && value <= kMaxSize) return static_cast<int>(value);
  return InvalidArgument("{}: \"{}\" is {}, outside 1..{}", config.path, key, value, kMaxSize);
}

absl::StatusOr<int> Size(const HfConfig& config, const JsonKeys& keys, std::string_view key) {
  ASSIGN_OR_RETURN(const int64_t value, keys.GetInt(key));
  return Checked(config, key, value);
}

absl::StatusOr<int> SizeOr(const HfConfig& config, const JsonKeys& keys, std::string_view key,
                           int fallback) {
  ASSIGN_OR_RETURN(const std::optional<int64_t> value, keys.FindInt(key));
  return Checked(config, key, value.value_or(fallback));
}

absl::StatusOr<bool> BoolOr(const JsonKeys& keys, std::string_view key, bool fallback) {
  ASSIGN_OR_RETURN(const std::optional<bool> value, keys.FindBool(key));
  return value.value_or(fallback);
}

absl::StatusOr<double> NumberOr(const JsonKeys& keys, std::string_view key, double fallback) {
  ASSIGN_OR_RETURN(const std::optional<double> value, keys.FindNumber(key));
  return value.value_or(fallback);
}

absl::StatusOr<std::string> ReadArchitecture(const JsonKeys& keys) {
  const json* names = keys.Find("architectures");
  if (names == nullptr) return keys.Missing("architectures");
  if (!names->is_array() || names->empty() || !names->front().is_string()) {
    return keys.WrongType("architectures", "a list of names");
  }
  return names->front().get<std::string>();
}

// What `rope_parameters` or `rope_scaling`, whichever is there, say.
absl::Status ReadRopeScaling(const HfConfig& config, const JsonKeys& keys, HfRope* rope) {
  const std::string_view name =
      keys.Find("rope_parameters") != nullptr ? "rope_parameters" : "rope_scaling";
  const json* object = keys.Find(name);
  if (object == nullptr) return absl::OkStatus();
  if (!object->is_object()) return keys.WrongType(name, "an object");
  const JsonKeys scaling(*object, config.path, fmt::format("{}.", name));
  ASSIGN_OR_RETURN(const std::optional<std::string> type, scaling.FindString("rope_type"));
  ASSIGN_OR_RETURN(const std::optional<std::string> old_type, scaling.FindString("type"));
  if (!type.has_value() && !old_type.has_value()) return scaling.Missing("rope_type");
  rope->type = type.has_value() ? *type : *old_type;
  ASSIGN_OR_RETURN(rope->theta, NumberOr(scaling, "rope_theta", rope->theta));
  ASSIGN_OR_RETURN(rope->partial_rotary_factor,
                   NumberOr(scaling, "partial_rotary_factor", rope->partial_rotary_factor));
  if (rope->type == "linear" || rope->type == "llama3") {
    ASSIGN_OR_RETURN(rope->factor, scaling.GetNumber("factor"));
  }
  if (rope->type != "llama3") return absl::OkStatus();
  ASSIGN_OR_RETURN(rope->low_freq_factor, scaling.GetNumber("low_freq_factor"));
  ASSIGN_OR_RETURN(rope->high_freq_factor, scaling.GetNumber("high_freq_factor"));
  ASSIGN_OR_RETURN(rope->original_max_position_embeddings,
                   Size(config, scaling, "original_max_position_embeddings"));
  if (rope->low_freq_factor > 0 && rope->high_freq_factor > rope->low_freq_factor) {
    return absl::OkStatus();
  }
  return InvalidArgument(
      "{}: {}: low_freq_factor {} and high_freq_factor {} must be above 0 and ascending",
      config.path, name, rope->low_freq_factor, rope->high_freq_factor);
}

// Both generations of keys; some stand inside the scaling's object or beside it.
absl::Status ReadRope(const HfConfig& config, const JsonKeys& keys, HfRope* rope) {
  ASSIGN_OR_RETURN(rope->theta, NumberOr(keys, "rope_theta", rope->theta));
  ASSIGN_OR_RETURN(rope->partial_rotary_factor, NumberOr(keys, "partial_rotary_factor", 1));
  RETURN_IF_ERROR(ReadRopeScaling(config, keys, rope));
  if (rope->theta > 0 && rope->factor > 0) return absl::OkStatus();
  return InvalidArgument("{}: rope_theta {} and the scaling's factor {} must be above 0",
                         config.path, rope->theta, rope->factor);
}

// Windows are there unless switched off (Qwen2) or as long as the context.
absl::Status ReadSlidingWindow(const JsonKeys& keys, HfConfig* config) {
  ASSIGN_OR_RETURN(const bool used, BoolOr(keys, "use_sliding_window", true));
  if (!used || keys.Find("sliding_window") == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(const int window, Size(*config, keys, "sliding_window"));
  if (window < config->max_position_embeddings) config->sliding_window = window;
  return absl::OkStatus();
}

absl::Status ReadSizes(const JsonKeys& keys, HfConfig* config) {
  ASSIGN_OR_RETURN(config->vocab_size, Size(*config, keys, "vocab_size"));
  ASSIGN_OR_RETURN(config->max_position_embeddings, Size(*config, keys, "max_position_embeddings"));
  ASSIGN_OR_RETURN(config->hidden_size, Size(*config, keys, "hidden_size"));
  ASSIGN_OR_RETURN(config->intermediate_size, Size(*config, keys, "intermediate_size"));
  ASSIGN_OR_RETURN(config->num_hidden_layers, Size(*config, keys, "num_hidden_layers"));
  ASSIGN_OR_RETURN(config->num_attention_heads, Size(*config, keys, "num_attention_heads"));
  ASSIGN_OR_RETURN(config->num_key_value_heads,
                   SizeOr(*config, keys, "num_key_value_heads", config->num_attention_heads));
  ASSIGN_OR_RETURN(config->head_dim,
                   SizeOr(*config, keys, "head_dim",
                          std::max(1, config->hidden_size / config->num_attention_heads)));
  ASSIGN_OR_RETURN(config->rms_norm_eps, keys.GetNumber("rms_norm_eps"));
  if (config->rms_norm_eps >= 0 && config->rms_norm_eps < 1) return absl::OkStatus();
  return InvalidArgument("{}: \"rms_norm_eps\" is {}, outside 0..1", config->path,
                         config->rms_norm_eps);
}

// A list of ids, or one id alone, or nothing; negative ids stand for none.
absl::Status ReadIds(const HfConfig& config, const JsonKeys& keys, std::string_view key,
                     std::vector<int32_t>* ids) {
  const json* value = keys.Find(key);
  if (value == nullptr) return absl::OkStatus();
  const json list = value->is_array() ? *value : json::array({*value});
  for (const json& id : list) {
    if (!id.is_number_integer()) return keys.WrongType(key, "an id or a list of ids");
    if (!id.is_number_unsigned() && id.get<int64_t>() < 0) continue;
    if (id.get<uint64_t>() >= static_cast<uint64_t>(config.vocab_size)) {
      return InvalidArgument("{}: \"{}\" has the id {}, outside the vocabulary of {}", keys.what(),
                             key, id.get<uint64_t>(), config.vocab_size);
    }
    ids->push_back(id.get<int32_t>());
  }
  return absl::OkStatus();
}

std::string GenerationConfigPath(const std::string& dir) { return dir + "/generation_config.json"; }

// generation_config.json's ids come before config.json's.
absl::Status ReadSpecialIds(const std::string& dir, const JsonKeys& keys, HfConfig* config) {
  const std::string path = GenerationConfigPath(dir);
  std::vector<int32_t> bos;
  std::error_code error;
  if (std::filesystem::exists(path, error)) {
    ASSIGN_OR_RETURN(const json generation, ReadJsonFile(path));
    const JsonKeys generation_keys(generation, path);
    RETURN_IF_ERROR(ReadIds(*config, generation_keys, "bos_token_id", &bos));
    RETURN_IF_ERROR(ReadIds(*config, generation_keys, "eos_token_id", &config->eos_token_ids));
  }
  if (bos.empty()) RETURN_IF_ERROR(ReadIds(*config, keys, "bos_token_id", &bos));
  if (config->eos_token_ids.empty()) {
    RETURN_IF_ERROR(ReadIds(*config, keys, "eos_token_id", &config->eos_token_ids));
  }
  if (!bos.empty()) config->bos_token_id = bos.front();
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> ReadHfArchitecture(const std::string& dir) {
  const std::string path = dir + "/config.json";
  ASSIGN_OR_RETURN(const json root, ReadJsonFile(path));
  return ReadArchitecture(JsonKeys(root, path));
}

absl::StatusOr<HfConfig> LoadHfConfig(const std::string& dir) {
  HfConfig config;
  config.path = dir + "/config.json";
  std::error_code error;
  if (!std::filesystem::exists(config.path, error)) {
    return NotFound(
        "{}: there is no config.json in it: give the folder of a Hugging Face checkpoint, or a "
        "GGUF "
        "file itself rather than its folder",
        dir);
  }
  ASSIGN_OR_RETURN(const json root, ReadJsonFile(config.path));
  const JsonKeys keys(root, config.path);
  ASSIGN_OR_RETURN(config.architecture, ReadArchitecture(keys));
  RETURN_IF_ERROR(ReadSizes(keys, &config));
  ASSIGN_OR_RETURN(std::optional<std::string> dtype, keys.FindString("dtype"));
  if (!dtype.has_value()) {
    ASSIGN_OR_RETURN(dtype, keys.FindString("torch_dtype"));
  }
  config.dtype = dtype.value_or("float32");
  ASSIGN_OR_RETURN(const std::optional<std::string> act, keys.FindString("hidden_act"));
  config.hidden_act = act.value_or("silu");
  ASSIGN_OR_RETURN(config.tie_word_embeddings, BoolOr(keys, "tie_word_embeddings", false));
  ASSIGN_OR_RETURN(config.attention_bias, BoolOr(keys, "attention_bias", false));
  ASSIGN_OR_RETURN(config.mlp_bias, BoolOr(keys, "mlp_bias", false));
  config.quantized = keys.Find("quantization_config") != nullptr;
  RETURN_IF_ERROR(ReadSlidingWindow(keys, &config));
  RETURN_IF_ERROR(ReadRope(config, keys, &config.rope));
  RETURN_IF_ERROR(ReadSpecialIds(dir, keys, &config));
  return config;
}

absl::StatusOr<HfGenerationConfig> ReadHfGenerationConfig(const std::string& dir) {
  HfGenerationConfig config;
  config.path = GenerationConfigPath(dir);
  std::error_code error;
  if (!std::filesystem::exists(config.path, error)) return config;
  ASSIGN_OR_RETURN(const json root, ReadJsonFile(config.path));
  const JsonKeys keys(root, config.path);
  ASSIGN_OR_RETURN(config.do_sample, keys.FindBool("do_sample"));
  ASSIGN_OR_RETURN(config.temperature, keys.FindNumber("temperature"));
  ASSIGN_OR_RETURN(config.top_p, keys.FindNumber("top_p"));
  ASSIGN_OR_RETURN(config.min_p, keys.FindNumber("min_p"));
  ASSIGN_OR_RETURN(config.repetition_penalty, keys.FindNumber("repetition_penalty"));
  ASSIGN_OR_RETURN(config.top_k, keys.FindInt("top_k"));
  ASSIGN_OR_RETURN(config.max_new_tokens, keys.FindInt("max_new_tokens"));
  return config;
}

bool IsHfCheckpoint(const std::string& path) {
  std::error_code error;
  return std::filesystem::is_directory(path, error);
}

}  // namespace penstock
