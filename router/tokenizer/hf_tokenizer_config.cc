#include "router/tokenizer/hf_tokenizer_config.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>
#include <vector>

#include "common/formats/json_file.h"
#include "common/status.h"
#include "router/tokenizer/utf8.h"

namespace penstock::router {
namespace {

using nlohmann::json;

constexpr const char* kSpecialTokens[] = {"bos_token", "eos_token", "unk_token", "pad_token",
                                          "sep_token", "cls_token", "mask_token"};

bool Exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

// Each is a string or an object with a "content".
absl::Status ReadSpecialTokens(const JsonKeys& keys, HfTokenizerConfig* config) {
  for (const char* name : kSpecialTokens) {
    const json* token = keys.Find(name);
    if (token == nullptr) continue;
    if (token->is_string()) {
      config->special_tokens.emplace(name, token->get<std::string>());
    } else if (token->is_object()) {
      const JsonKeys inner(*token, keys.what(), fmt::format("{}.", name));
      ASSIGN_OR_RETURN(std::string content, inner.GetString("content"));
      config->special_tokens.emplace(name, std::move(content));
    } else {
      return keys.WrongType(name, "a string or an object");
    }
  }
  return absl::OkStatus();
}

// One string, or a list of templates with names.
absl::Status ReadChatTemplates(const JsonKeys& keys, HfTokenizerConfig* config) {
  const json* templates = keys.Find("chat_template");
  if (templates == nullptr) return absl::OkStatus();
  if (templates->is_string()) {
    config->chat_templates["default"] = templates->get<std::string>();
    return absl::OkStatus();
  }
  if (!templates->is_array()) return keys.WrongType("chat_template", "a string or a list");
  for (size_t i = 0; i < templates->size(); ++i) {
    const JsonKeys entry((*templates)[i], keys.what(), fmt::format("chat_template[{}].", i));
    ASSIGN_OR_RETURN(const std::string name, entry.GetString("name"));
    ASSIGN_OR_RETURN(config->chat_templates[name], entry.GetString("template"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file) return InvalidArgument("{}: it cannot be read", path);
  if (!IsValidUtf8(text)) return InvalidArgument("{}: it is not valid UTF-8", path);
  return text;
}

// Templates in files of their own: where there are any, tokenizer_config.json's don't count.
absl::Status ReadTemplateFiles(const std::string& dir, HfTokenizerConfig* config) {
  std::map<std::string, std::string> templates;
  if (const std::string path = dir + "/chat_template.jinja"; Exists(path)) {
    ASSIGN_OR_RETURN(templates["default"], ReadText(path));
  }
  std::error_code ignored;
  for (const auto& entry :
       std::filesystem::directory_iterator(dir + "/additional_chat_templates", ignored)) {
    if (entry.path().extension() != ".jinja") continue;
    ASSIGN_OR_RETURN(templates[entry.path().stem().string()], ReadText(entry.path().string()));
  }
  if (!templates.empty()) config->chat_templates = std::move(templates);
  return absl::OkStatus();
}

absl::StatusOr<json> ReadObject(const std::string& path) {
  ASSIGN_OR_RETURN(json object, ReadJsonFile(path));
  if (!object.is_object()) return InvalidArgument("{}: it is not a JSON object", path);
  return object;
}

}  // namespace

absl::StatusOr<HfTokenizerConfig> ReadHfTokenizerConfig(const std::string& dir) {
  HfTokenizerConfig config;
  config.path = dir + "/tokenizer_config.json";
  if (Exists(config.path)) {
    ASSIGN_OR_RETURN(const json object, ReadObject(config.path));
    const JsonKeys keys(object, config.path);
    RETURN_IF_ERROR(ReadSpecialTokens(keys, &config));
    RETURN_IF_ERROR(ReadChatTemplates(keys, &config));
    ASSIGN_OR_RETURN(config.add_bos_token, keys.FindBool("add_bos_token"));
    ASSIGN_OR_RETURN(config.add_eos_token, keys.FindBool("add_eos_token"));
  }
  if (const std::string path = dir + "/special_tokens_map.json"; Exists(path)) {
    ASSIGN_OR_RETURN(const json object, ReadObject(path));
    RETURN_IF_ERROR(ReadSpecialTokens(JsonKeys(object, path), &config));
  }
  RETURN_IF_ERROR(ReadTemplateFiles(dir, &config));
  return config;
}

}  // namespace penstock::router
