#include "common/formats/json_file.h"

#include <cmath>
#include <set>
#include <utility>
#include <vector>

#include "common/formats/mapped_file.h"
#include "common/status.h"

namespace penstock {
namespace {

using nlohmann::json;

constexpr size_t kMaxDepth = 64;
constexpr size_t kShown = 80;  // characters of a wrong value in an error

// Refuses what nlohmann's own parser lets pass: doubled keys and bottomless nesting.
class Guard {
 public:
  // Returns whether to go on storing what is parsed.
  bool operator()(int depth, json::parse_event_t event, const json& parsed) {
    if (static_cast<size_t>(depth) > kMaxDepth) problem_ = "is nested too deeply";
    if (!problem_.empty()) return false;
    if (event == json::parse_event_t::object_start) keys_.emplace_back();
    if (event == json::parse_event_t::object_end) keys_.pop_back();
    if (event == json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!keys_.back().insert(key).second) problem_ = fmt::format("has the key \"{}\" twice", key);
    }
    return problem_.empty();
  }
  const std::string& problem() const { return problem_; }

 private:
  std::vector<std::set<std::string>> keys_;  // of the objects that are open
  std::string problem_;
};

}  // namespace

absl::StatusOr<json> ParseJson(std::string_view text, std::string_view what) {
  Guard guard;
  json parsed;
  try {
    parsed = json::parse(text, [&](int depth, json::parse_event_t event, json& value) {
      return guard(depth, event, value);
    });
  } catch (const json::parse_error& error) {
    if (guard.problem().empty()) {
      return InvalidArgument("{} is not valid JSON at byte {}: download it again", what,
                             error.byte);
    }
  } catch (const json::exception& error) {  // a number that no type holds
    return InvalidArgument("{} is not valid JSON ({}): download it again", what, error.what());
  }
  if (!guard.problem().empty()) {
    return InvalidArgument("{} {}: download it again", what, guard.problem());
  }
  return parsed;
}

absl::StatusOr<json> ReadJsonFile(const std::string& path) {
  ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path, "give the folder of a model"));
  if (file.size() > kMaxJsonFileBytes) {
    return InvalidArgument("{} has {} bytes, more than a JSON file of a model can need", path,
                           file.size());
  }
  return ParseJson({reinterpret_cast<const char*>(file.data()), file.size()}, path);
}

const json* JsonKeys::Find(std::string_view key) const {
  if (!object_.is_object()) return nullptr;
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

absl::Status JsonKeys::Missing(std::string_view key) const {
  return InvalidArgument("{}: \"{}{}\" is missing", what_, prefix_, key);
}

absl::Status JsonKeys::WrongType(std::string_view key, std::string_view wanted) const {
  const json* value = Find(key);
  std::string text =
      value == nullptr ? "null" : value->dump(-1, ' ', false, json::error_handler_t::replace);
  if (text.size() > kShown) text = text.substr(0, kShown) + "...";
  return InvalidArgument("{}: \"{}{}\" is {}, not {}", what_, prefix_, key, text, wanted);
}

absl::StatusOr<std::optional<int64_t>> JsonKeys::FindInt(std::string_view key) const {
  const json* value = Find(key);
  if (value == nullptr) return std::optional<int64_t>();
  const bool fits = value->is_number_integer() &&
                    (!value->is_number_unsigned() || value->get<uint64_t>() <= INT64_MAX);
  if (!fits) return WrongType(key, "a whole number");
  return std::optional(value->get<int64_t>());
}

absl::StatusOr<std::optional<double>> JsonKeys::FindNumber(std::string_view key) const {
  const json* value = Find(key);
  if (value == nullptr) return std::optional<double>();
  if (!value->is_number() || !std::isfinite(value->get<double>())) {
    return WrongType(key, "a number");
  }
  return std::optional(value->get<double>());
}

absl::StatusOr<std::optional<bool>> JsonKeys::FindBool(std::string_view key) const {
  const json* value = Find(key);
  if (value == nullptr) return std::optional<bool>();
  if (!value->is_boolean()) return WrongType(key, "true or false");
  return std::optional(value->get<bool>());
}

absl::StatusOr<std::optional<std::string>> JsonKeys::FindString(std::string_view key) const {
  const json* value = Find(key);
  if (value == nullptr) return std::optional<std::string>();
  if (!value->is_string()) return WrongType(key, "a string");
  return std::optional(value->get<std::string>());
}

absl::StatusOr<int64_t> JsonKeys::GetInt(std::string_view key) const {
  ASSIGN_OR_RETURN(const std::optional<int64_t> value, FindInt(key));
  if (!value.has_value()) return Missing(key);
  return *value;
}

absl::StatusOr<double> JsonKeys::GetNumber(std::string_view key) const {
  ASSIGN_OR_RETURN(const std::optional<double> value, FindNumber(key));
  if (!value.has_value()) return Missing(key);
  return *value;
}

absl::StatusOr<std::string> JsonKeys::GetString(std::string_view key) const {
  ASSIGN_OR_RETURN(std::optional<std::string> value, FindString(key));
  if (!value.has_value()) return Missing(key);
  return *std::move(value);
}

}  // namespace penstock
