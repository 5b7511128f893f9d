// Builds the bytes of a GGUF file in memory, for tests. Writes whatever it is told, sound or not.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/formats/gguf.h"

namespace penstock {

class GgufBuilder {
 public:
  explicit GgufBuilder(uint32_t version = 3) : version_(version) {}

  template <typename T>
  static std::string Bytes(T value) {
    std::string bytes(sizeof(T), '\0');
    std::memcpy(bytes.data(), &value, sizeof(T));
    return bytes;
  }
  static std::string String(std::string_view text) {
    return Bytes<uint64_t>(text.size()) + std::string(text);
  }

  // `payload` is the value's bytes as they stand in the file.
  GgufBuilder& Value(std::string_view key, GgufValueType type, const std::string& payload) {
    metadata_ += String(key) + Bytes(static_cast<uint32_t>(type)) + payload;
    ++num_values_;
    return *this;
  }
  GgufBuilder& U32(std::string_view key, uint32_t value) {
    return Value(key, GgufValueType::kU32, Bytes(value));
  }
  GgufBuilder& F32(std::string_view key, float value) {
    return Value(key, GgufValueType::kF32, Bytes(value));
  }
  GgufBuilder& Bool(std::string_view key, bool value) {
    return Value(key, GgufValueType::kBool, Bytes<uint8_t>(value));
  }
  GgufBuilder& Str(std::string_view key, std::string_view value) {
    return Value(key, GgufValueType::kString, String(value));
  }
  GgufBuilder& Array(std::string_view key, GgufValueType type, uint64_t count,
                     const std::string& elements) {
    return Value(key, GgufValueType::kArray,
                 Bytes(static_cast<uint32_t>(type)) + Bytes(count) + elements);
  }
  GgufBuilder& Strings(std::string_view key, const std::vector<std::string>& values) {
    std::string elements;
    for (const std::string& value : values) elements += String(value);
    return Array(key, GgufValueType::kString, values.size(), elements);
  }
  GgufBuilder& I32s(std::string_view key, const std::vector<int32_t>& values) {
    std::string elements;
    for (int32_t value : values) elements += Bytes(value);
    return Array(key, GgufValueType::kI32, values.size(), elements);
  }

  // Appends the tensor's data to the data section, at a multiple of the alignment.
  GgufBuilder& Tensor(std::string_view name, uint32_t type_code, const std::vector<uint64_t>& dims,
                      const std::string& data) {
    data_.resize((data_.size() + alignment_ - 1) / alignment_ * alignment_);
    return TensorAt(name, type_code, dims, data_.size(), data);
  }
  GgufBuilder& TensorAt(std::string_view name, uint32_t type_code,
                        const std::vector<uint64_t>& dims, uint64_t offset,
                        const std::string& data) {
    directory_ += String(name) + Bytes(static_cast<uint32_t>(dims.size()));
    for (uint64_t dim : dims) directory_ += Bytes(dim);
    directory_ += Bytes(type_code) + Bytes(offset);
    data_ += data;
    ++num_tensors_;
    return *this;
  }
  // What the writer pads to; the file says so only if the test adds general.alignment itself.
  GgufBuilder& PadTo(uint64_t alignment) {
    alignment_ = alignment;
    return *this;
  }
  GgufBuilder& Counts(uint64_t num_tensors, uint64_t num_values) {
    num_tensors_ = num_tensors;
    num_values_ = num_values;
    return *this;
  }

  std::string Build() const {
    std::string file = "GGUF" + Bytes(version_) + Bytes(num_tensors_) + Bytes(num_values_) +
                       metadata_ + directory_;
    if (!data_.empty()) {
      file.resize((file.size() + alignment_ - 1) / alignment_ * alignment_);
      file += data_;
    }
    return file;
  }

 private:
  uint32_t version_;
  uint64_t num_values_ = 0;
  uint64_t num_tensors_ = 0;
  uint64_t alignment_ = 32;
  std::string metadata_;
  std::string directory_;
  std::string data_;
};

}  // namespace penstock
