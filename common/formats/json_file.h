// A JSON file read and parsed, with errors that say where it is wrong; and reading typed values by
// key.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace penstock {

constexpr uint64_t kMaxJsonFileBytes = uint64_t{256} << 20;

// NotFound if there is no such file, InvalidArgument if it is not JSON, larger than
// kMaxJsonFileBytes or holds a key twice in one object (readers differ in which one counts).
absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path);

// The same of a text in memory; `what` names it in errors.
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, std::string_view what);

// Typed reads from an object. Find*: nullopt if the key is absent or null; Get*: InvalidArgument
// then. Both: InvalidArgument, naming file and key, if the value is of another type.
class JsonKeys {
 public:
  // `object` outlives this. `what` names it in errors: the file, say. `prefix` stands before the
  // keys there.
  JsonKeys(const nlohmann::json& object, std::string what, std::string prefix = "")
      : object_(object), what_(std::move(what)), prefix_(std::move(prefix)) {}

  absl::StatusOr<std::optional<int64_t>> FindInt(std::string_view key) const;
  absl::StatusOr<std::optional<double>> FindNumber(std::string_view key) const;  // finite
  absl::StatusOr<std::optional<bool>> FindBool(std::string_view key) const;
  absl::StatusOr<std::optional<std::string>> FindString(std::string_view key) const;
  absl::StatusOr<int64_t> GetInt(std::string_view key) const;
  absl::StatusOr<double> GetNumber(std::string_view key) const;
  absl::StatusOr<std::string> GetString(std::string_view key) const;

  const std::string& what() const { return what_; }
  // Null if the key is absent or null, or the value is no object.
  const nlohmann::json* Find(std::string_view key) const;
  absl::Status Missing(std::string_view key) const;
  absl::Status WrongType(std::string_view key, std::string_view wanted) const;

 private:
  const nlohmann::json& object_;
  const std::string what_;
  const std::string prefix_;
};

}  // namespace penstock
