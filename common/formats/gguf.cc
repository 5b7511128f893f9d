#include "common/formats/gguf.h"

#include <cstring>
#include <type_traits>
#include <utility>

#include "common/formats/gguf_parser.h"
#include "common/status.h"
#include "fmt/format.h"

namespace penstock {
namespace {

std::string_view TypeName(GgufValueType type) {
  constexpr std::string_view kNames[] = {"U8",   "I8",     "U16",   "I16", "U32", "I32", "F32",
                                         "BOOL", "STRING", "ARRAY", "U64", "I64", "F64"};
  return kNames[static_cast<uint32_t>(type)];
}

template <typename T>
T Load(const std::byte* data) {
  T value;
  std::memcpy(&value, data, sizeof(T));
  return value;
}

// Reads the integer at `data` into a T if it fits.
template <typename T, typename Stored>
std::optional<T> Narrow(const std::byte* data) {
  const Stored value = Load<Stored>(data);
  if (!std::in_range<T>(value)) return std::nullopt;
  return static_cast<T>(value);
}

template <typename T>
std::optional<T> LoadInteger(GgufValueType type, const std::byte* data) {
  switch (type) {
    case GgufValueType::kU8:
      return Narrow<T, uint8_t>(data);
    case GgufValueType::kI8:
      return Narrow<T, int8_t>(data);
    case GgufValueType::kU16:
      return Narrow<T, uint16_t>(data);
    case GgufValueType::kI16:
      return Narrow<T, int16_t>(data);
    case GgufValueType::kU32:
      return Narrow<T, uint32_t>(data);
    case GgufValueType::kI32:
      return Narrow<T, int32_t>(data);
    case GgufValueType::kU64:
      return Narrow<T, uint64_t>(data);
    case GgufValueType::kI64:
      return Narrow<T, int64_t>(data);
    default:
      return std::nullopt;
  }
}

// One element at `data`, nullopt if its type doesn't fit T. `data` moves past the element.
template <typename T>
std::optional<T> LoadElement(GgufValueType type, const std::byte** data) {
  constexpr uint64_t kSizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  const std::byte* at = *data;
  if constexpr (std::is_same_v<T, std::string_view>) {
    if (type != GgufValueType::kString) return std::nullopt;
    const uint64_t length = Load<uint64_t>(at);
    *data = at + sizeof(uint64_t) + length;
    return std::string_view(reinterpret_cast<const char*>(at + sizeof(uint64_t)), length);
  } else {
    *data = at + kSizes[static_cast<uint32_t>(type)];
    if constexpr (std::is_same_v<T, bool>) {
      if (type != GgufValueType::kBool) return std::nullopt;
      return Load<uint8_t>(at) != 0;
    } else if constexpr (std::is_same_v<T, float>) {
      if (type == GgufValueType::kF32) return Load<float>(at);
      if (type == GgufValueType::kF64) return static_cast<float>(Load<double>(at));
      const std::optional<int64_t> integer = LoadInteger<int64_t>(type, at);
      if (!integer.has_value()) return std::nullopt;
      return static_cast<float>(*integer);
    } else {
      return LoadInteger<T>(type, at);
    }
  }
}

template <typename T>
constexpr std::string_view WantedName() {
  if constexpr (std::is_same_v<T, std::string_view>) return "a string";
  if constexpr (std::is_same_v<T, bool>) return "a boolean";
  if constexpr (std::is_same_v<T, float>) return "a number";
  if constexpr (std::is_same_v<T, int32_t>) return "an integer of 32 bits";
  if constexpr (std::is_same_v<T, uint32_t>) return "an unsigned integer of 32 bits";
  return "an unsigned integer of 64 bits";
}

}  // namespace

absl::StatusOr<std::shared_ptr<const GgufFile>> GgufFile::Open(const std::string& path) {
  std::shared_ptr<GgufFile> file(new GgufFile());
  ASSIGN_OR_RETURN(file->mapping_, MappedFile::Open(path, "give the path of a .gguf model"));
  file->path_ = path;
  file->data_ = file->mapping_.data();
  file->size_ = file->mapping_.size();
  RETURN_IF_ERROR(GgufParser(file.get()).Parse());
  return std::shared_ptr<const GgufFile>(std::move(file));
}

absl::Status GgufFile::TypeError(std::string_view key, const Value& value,
                                 std::string_view wanted) const {
  const bool array = value.type == GgufValueType::kArray;
  return absl::InvalidArgumentError(fmt::format(
      "{}: metadata \"{}\" ({}{}) is not {}{}: the model is damaged or of a kind Penstock doesn't "
      "know",
      path_, key, array ? "array of " : "", TypeName(array ? value.element_type : value.type),
      wanted, array ? " throughout" : ""));
}

absl::Status GgufFile::AbsentError(std::string_view key) const {
  return absl::InvalidArgumentError(fmt::format(
      "{}: metadata \"{}\" is missing: convert the model again with a current converter", path_,
      key));
}

template <typename T>
absl::StatusOr<std::optional<T>> GgufFile::FindScalar(std::string_view key) const {
  const auto found = values_.find(key);
  if (found == values_.end()) return std::optional<T>();
  const std::byte* data = found->second.data;
  std::optional<T> value;
  if (found->second.type != GgufValueType::kArray) {
    value = LoadElement<T>(found->second.type, &data);
  }
  if (!value.has_value()) return TypeError(key, found->second, WantedName<T>());
  return value;
}

template <typename T>
absl::StatusOr<T> GgufFile::GetScalar(std::string_view key) const {
  ASSIGN_OR_RETURN(const std::optional<T> value, FindScalar<T>(key));
  if (!value.has_value()) return AbsentError(key);
  return *value;
}

absl::StatusOr<uint32_t> GgufFile::GetU32(std::string_view key) const {
  return GetScalar<uint32_t>(key);
}
absl::StatusOr<int32_t> GgufFile::GetI32(std::string_view key) const {
  return GetScalar<int32_t>(key);
}
absl::StatusOr<uint64_t> GgufFile::GetU64(std::string_view key) const {
  return GetScalar<uint64_t>(key);
}
absl::StatusOr<float> GgufFile::GetF32(std::string_view key) const { return GetScalar<float>(key); }
absl::StatusOr<bool> GgufFile::GetBool(std::string_view key) const { return GetScalar<bool>(key); }
absl::StatusOr<std::string_view> GgufFile::GetString(std::string_view key) const {
  return GetScalar<std::string_view>(key);
}
absl::StatusOr<std::optional<uint32_t>> GgufFile::FindU32(std::string_view key) const {
  return FindScalar<uint32_t>(key);
}
absl::StatusOr<std::optional<int32_t>> GgufFile::FindI32(std::string_view key) const {
  return FindScalar<int32_t>(key);
}
absl::StatusOr<std::optional<uint64_t>> GgufFile::FindU64(std::string_view key) const {
  return FindScalar<uint64_t>(key);
}
absl::StatusOr<std::optional<float>> GgufFile::FindF32(std::string_view key) const {
  return FindScalar<float>(key);
}
absl::StatusOr<std::optional<bool>> GgufFile::FindBool(std::string_view key) const {
  return FindScalar<bool>(key);
}
absl::StatusOr<std::optional<std::string_view>> GgufFile::FindString(std::string_view key) const {
  return FindScalar<std::string_view>(key);
}

template <typename T>
absl::StatusOr<std::optional<std::vector<T>>> GgufFile::FindArray(std::string_view key) const {
  const auto found = values_.find(key);
  if (found == values_.end()) return std::optional<std::vector<T>>();
  const Value& value = found->second;
  if (value.type != GgufValueType::kArray) return TypeError(key, value, "an array");
  std::vector<T> elements;
  elements.reserve(value.element_type == GgufValueType::kArray ? 0 : value.count);
  const std::byte* data = value.data;
  for (uint64_t i = 0; i < value.count; ++i) {
    const std::optional<T> element = LoadElement<T>(value.element_type, &data);
    if (!element.has_value()) return TypeError(key, value, WantedName<T>());
    elements.push_back(*element);
  }
  return std::optional<std::vector<T>>(std::move(elements));
}

template <typename T>
absl::StatusOr<std::vector<T>> GgufFile::GetArray(std::string_view key) const {
  ASSIGN_OR_RETURN(std::optional<std::vector<T>> elements, FindArray<T>(key));
  if (!elements.has_value()) return AbsentError(key);
  return *std::move(elements);
}

#define PENSTOCK_GGUF_ARRAY(T)                                                                    \
  template absl::StatusOr<std::vector<T>> GgufFile::GetArray<T>(std::string_view) const;          \
  template absl::StatusOr<std::optional<std::vector<T>>> GgufFile::FindArray<T>(std::string_view) \
      const
PENSTOCK_GGUF_ARRAY(uint32_t);
PENSTOCK_GGUF_ARRAY(int32_t);
PENSTOCK_GGUF_ARRAY(uint64_t);
PENSTOCK_GGUF_ARRAY(float);
PENSTOCK_GGUF_ARRAY(bool);
PENSTOCK_GGUF_ARRAY(std::string_view);
#undef PENSTOCK_GGUF_ARRAY

std::optional<GgufValueType> GgufFile::TypeOf(std::string_view key) const {
  const auto found = values_.find(key);
  if (found == values_.end()) return std::nullopt;
  return found->second.type;
}

const GgufTensor* GgufFile::FindTensor(std::string_view name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

absl::StatusOr<const GgufTensor*> GgufFile::GetTensor(std::string_view name) const {
  const GgufTensor* tensor = FindTensor(name);
  if (tensor == nullptr) {
    return absl::InvalidArgumentError(
        fmt::format("{}: tensor \"{}\" is missing: the model is damaged or of a kind Penstock "
                    "doesn't know",
                    path_, name));
  }
  return tensor;
}

}  // namespace penstock
