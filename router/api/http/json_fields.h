// Reads the members of a client's JSON object and says what is wrong in words a client can use.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "common/status.h"

namespace penstock::router {

using Json = nlohmann::json;

// Parses a request body: INVALID_ARGUMENT unless it is one JSON object in valid UTF-8.
absl::StatusOr<Json> ParseObject(const std::string& body);

// The first error is kept; after it the readers return nothing. A member that is null counts as
// absent. Errors are INVALID_ARGUMENT and name the field (FieldOf). `object` outlives the reader.
class JsonFields {
 public:
  // `path` goes before field names in errors: "messages[0]."
  explicit JsonFields(const Json& object, std::string path = "");

  const absl::Status& status() const { return status_; }
  void Fail(const std::string& name, const std::string& message);

  // Null if absent.
  const Json* Find(const char* name);
  std::optional<double> Number(const char* name);
  std::optional<int64_t> Integer(const char* name);
  std::optional<bool> Bool(const char* name);
  std::optional<std::string> String(const char* name);
  std::vector<int64_t> Integers(const char* name);  // an array of them
  // Takes the place of `value` where that is set.
  static std::optional<int64_t> IntegerOf(const Json& value);

  // Fails with "NAME is not supported" if the member is there with another value than one of
  // `harmless` (given as JSON: "false", "1", "[]").
  void Refuse(const char* name, std::initializer_list<const char*> harmless);

 private:
  void WrongType(const char* name, const Json& value, const char* wanted);

  const Json& object_;
  const std::string path_;
  absl::Status status_;
};

}  // namespace penstock::router
