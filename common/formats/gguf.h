// GGUF files, versions 2 and 3, little-endian: metadata and tensor directory over a read-only
// mapping. Source: the GGUF specification (docs/gguf.md of the ggml project).
//
// Everything is checked in Open (counts, lengths, types, alignment, extents, duplicates), so that
// an open file can be read without further checks. Errors name the file, the place and what to do.
//
// A GgufFile is immutable: all methods may be called from any thread. Every string_view, GgufTensor
// and data pointer it hands out lives as long as the GgufFile. See mapped_file.h for what must not
// be done to the file meanwhile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"
#include "common/formats/ggml_type.h"
#include "common/formats/mapped_file.h"

namespace penstock {

// Values are the codes in the file.
enum class GgufValueType : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

struct GgufTensor {
  std::string_view name;
  GgmlType type;
  // In GGML's order: dims[0] is the contiguous one (a row's length), so that a matrix that PyTorch
  // calls [out, in] has dims {in, out}. One to four entries, none zero.
  std::vector<uint64_t> dims;
  uint64_t num_elements;
  uint64_t offset;     // of the data, in bytes from the start of the file
  uint64_t num_bytes;  // of the data, without padding
};

class GgufFile {
 public:
  // NotFound if there is no such file, InvalidArgument if it isn't a sound GGUF file,
  // PermissionDenied or Internal if it can't be opened or mapped.
  static absl::StatusOr<std::shared_ptr<const GgufFile>> Open(const std::string& path);

  GgufFile(const GgufFile&) = delete;
  GgufFile& operator=(const GgufFile&) = delete;

  const std::string& path() const { return path_; }
  uint32_t version() const { return version_; }
  uint64_t file_size() const { return size_; }

  // Metadata. Get*: InvalidArgument if the key is absent. Find*: nullopt if it is absent. Both:
  // InvalidArgument if it has another type. Integers of any width are taken where the value fits;
  // F32 is also read from F64 and from integers.
  bool Has(std::string_view key) const { return values_.contains(key); }
  absl::StatusOr<uint32_t> GetU32(std::string_view key) const;
  absl::StatusOr<int32_t> GetI32(std::string_view key) const;
  absl::StatusOr<uint64_t> GetU64(std::string_view key) const;
  absl::StatusOr<float> GetF32(std::string_view key) const;
  absl::StatusOr<bool> GetBool(std::string_view key) const;
  absl::StatusOr<std::string_view> GetString(std::string_view key) const;
  absl::StatusOr<std::optional<uint32_t>> FindU32(std::string_view key) const;
  absl::StatusOr<std::optional<int32_t>> FindI32(std::string_view key) const;
  absl::StatusOr<std::optional<uint64_t>> FindU64(std::string_view key) const;
  absl::StatusOr<std::optional<float>> FindF32(std::string_view key) const;
  absl::StatusOr<std::optional<bool>> FindBool(std::string_view key) const;
  absl::StatusOr<std::optional<std::string_view>> FindString(std::string_view key) const;

  // Arrays, for T = uint32_t, int32_t, uint64_t, float, bool and std::string_view, by the same
  // rules.
  template <typename T>
  absl::StatusOr<std::vector<T>> GetArray(std::string_view key) const;
  template <typename T>
  absl::StatusOr<std::optional<std::vector<T>>> FindArray(std::string_view key) const;

  // The type of a key's value, nullopt if it is absent; for an array kArray.
  std::optional<GgufValueType> TypeOf(std::string_view key) const;
  // All keys, in the file's order.
  const std::vector<std::string_view>& keys() const { return keys_; }

  // Tensors, in the file's order.
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  // Null if there is none of this name.
  const GgufTensor* FindTensor(std::string_view name) const;
  // InvalidArgument, naming file and tensor, if there is none of this name.
  absl::StatusOr<const GgufTensor*> GetTensor(std::string_view name) const;
  // `tensor` is one of this file's; its num_bytes bytes lie there, aligned to general.alignment (at
  // least 8) relative to the page-aligned mapping.
  const std::byte* TensorData(const GgufTensor& tensor) const { return data_ + tensor.offset; }

 private:
  friend class GgufParser;

  // Where a value lies in the mapping; for an array, the first element.
  struct Value {
    GgufValueType type;
    GgufValueType element_type;  // arrays only
    uint64_t count;              // of elements; 1 unless an array
    const std::byte* data;
  };

  GgufFile() = default;
  absl::Status TypeError(std::string_view key, const Value& value, std::string_view wanted) const;
  absl::Status AbsentError(std::string_view key) const;
  template <typename T>
  absl::StatusOr<std::optional<T>> FindScalar(std::string_view key) const;
  template <typename T>
  absl::StatusOr<T> GetScalar(std::string_view key) const;

  std::string path_;
  MappedFile mapping_;
  const std::byte* data_ = nullptr;  // the mapping's
  uint64_t size_ = 0;
  uint32_t version_ = 0;
  std::vector<std::string_view> keys_;
  std::unordered_map<std::string_view, Value> values_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string_view, size_t> tensor_index_;
};

}  // namespace penstock
