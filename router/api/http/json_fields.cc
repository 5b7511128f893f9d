#include "router/api/http/json_fields.h"

#include <cmath>
#include <utility>

#include "router/request/validate.h"

namespace penstock::router {

absl::StatusOr<Json> ParseObject(const std::string& body) {
  try {
    Json object = Json::parse(body);
    if (object.is_object()) return object;
    return InvalidArgument("the body is a JSON {}: give an object", object.type_name());
  } catch (const Json::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    const std::string what = error.what();
    const size_t end = what.find("] ");
    return InvalidArgument("the body is not valid JSON: {}",
                           end == std::string::npos ? what : what.substr(end + 2));
  }
}

JsonFields::JsonFields(const Json& object, std::string path)
    : object_(object), path_(std::move(path)) {}

void JsonFields::Fail(const std::string& name, const std::string& message) {
  if (status_.ok()) status_ = FieldError(path_ + name, message);
}

void JsonFields::WrongType(const char* name, const Json& value, const char* wanted) {
  Fail(name, fmt::format("{}{} is a JSON {}: give {}", path_, name, value.type_name(), wanted));
}

const Json* JsonFields::Find(const char* name) {
  if (!status_.ok()) return nullptr;
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

std::optional<double> JsonFields::Number(const char* name) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_number()) return value->get<double>();
  WrongType(name, *value, "a number");
  return std::nullopt;
}

std::optional<int64_t> JsonFields::IntegerOf(const Json& value) {
  if (value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX) return INT64_MAX;
  if (value.is_number_integer()) return value.get<int64_t>();
  if (!value.is_number_float()) return std::nullopt;
  const double number = value.get<double>();  // 5.0 is an integer to most clients
  if (number != std::floor(number) || std::abs(number) > 1e15) return std::nullopt;
  return static_cast<int64_t>(number);
}

std::optional<int64_t> JsonFields::Integer(const char* name) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  const std::optional<int64_t> integer = IntegerOf(*value);
  if (!integer && value->is_number()) {
    Fail(name, fmt::format("{}{} is {}: give an integer", path_, name, value->dump()));
  } else if (!integer) {
    WrongType(name, *value, "an integer");
  }
  return integer;
}

std::optional<bool> JsonFields::Bool(const char* name) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_boolean()) return value->get<bool>();
  WrongType(name, *value, "true or false");
  return std::nullopt;
}

std::optional<std::string> JsonFields::String(const char* name) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_string()) return value->get<std::string>();
  WrongType(name, *value, "a string");
  return std::nullopt;
}

std::vector<int64_t> JsonFields::Integers(const char* name) {
  const Json* value = Find(name);
  if (value == nullptr) return {};
  std::vector<int64_t> integers;
  if (value->is_array()) {
    integers.reserve(value->size());
    for (const Json& item : *value) {
      const std::optional<int64_t> integer = IntegerOf(item);
      if (!integer) break;
      integers.push_back(*integer);
    }
    if (integers.size() == value->size()) return integers;
  }
  Fail(name, fmt::format("{}{} must be an array of integers", path_, name));
  return {};
}

void JsonFields::Refuse(const char* name, std::initializer_list<const char*> harmless) {
  const Json* value = Find(name);
  if (value == nullptr) return;
  for (const char* text : harmless) {
    if (*value == Json::parse(text)) return;
  }
  std::string given = value->dump();
  if (given.size() > 64) given = value->type_name();
  Fail(name, fmt::format("{}{} is {}: this server does not support that; leave it out", path_, name,
                         given));
}

}  // namespace penstock::router
