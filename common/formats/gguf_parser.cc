#include "common/formats/gguf_parser.h"

#include <algorithm>
#include <bit>

#include "fmt/format.h"

namespace penstock {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is read in place");

constexpr std::string_view kMagic = "GGUF";
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMinAlignment = 8;           // the specification's
constexpr uint64_t kMaxAlignment = 1ull << 30;  // a sane bound against overflow
constexpr uint64_t kMaxNameBytes = 65535;       // the specification's, for keys
constexpr uint32_t kMaxDims = 4;
constexpr int kMaxArrayDepth = 8;
// The fewest bytes that an entry can take: bound the counts before anything is reserved.
constexpr uint64_t kMinValueBytes = 8 + 4 + 1;
constexpr uint64_t kMinTensorBytes = 8 + 4 + 8 + 4 + 8;

// Bytes of a fixed-size type, 0 for strings and arrays.
uint64_t FixedSize(GgufValueType type) {
  switch (type) {
    case GgufValueType::kU8:
    case GgufValueType::kI8:
    case GgufValueType::kBool:
      return 1;
    case GgufValueType::kU16:
    case GgufValueType::kI16:
      return 2;
    case GgufValueType::kU32:
    case GgufValueType::kI32:
    case GgufValueType::kF32:
      return 4;
    case GgufValueType::kU64:
    case GgufValueType::kI64:
    case GgufValueType::kF64:
      return 8;
    case GgufValueType::kString:
    case GgufValueType::kArray:
      return 0;
  }
  return 0;
}

// A name from a file that may be corrupt, made fit for a message.
std::string Printable(std::string_view name) {
  constexpr size_t kMaxShown = 80;
  std::string text;
  for (char c : name.substr(0, kMaxShown)) {
    if (c >= 0x20 && c < 0x7f) {
      text += c;
    } else {
      text += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    }
  }
  if (name.size() > kMaxShown) text += "...";
  return text;
}

}  // namespace

absl::Status GgufParser::Corrupt(std::string_view problem) const {
  return absl::InvalidArgumentError(
      fmt::format("{}: at byte {}: {}; the file is damaged or not a GGUF file that Penstock can "
                  "read: download or convert it again",
                  file_->path_, position_, problem));
}

absl::Status GgufParser::Need(uint64_t bytes, std::string_view what) const {
  if (bytes <= Remaining()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("{}: file ends at byte {}, but {} at byte {} needs {} bytes: the file is cut "
                  "short, download it again",
                  file_->path_, file_->size_, what, position_, bytes));
}

template <typename T>
absl::Status GgufParser::ReadNumber(T* value, std::string_view what) {
  RETURN_IF_ERROR(Need(sizeof(T), what));
  std::memcpy(value, file_->data_ + position_, sizeof(T));
  position_ += sizeof(T);
  return absl::OkStatus();
}

absl::Status GgufParser::ReadString(std::string_view* value, std::string_view what) {
  uint64_t length = 0;
  RETURN_IF_ERROR(ReadNumber(&length, what));
  RETURN_IF_ERROR(Need(length, what));
  *value = {reinterpret_cast<const char*>(file_->data_ + position_), length};
  position_ += length;
  return absl::OkStatus();
}

absl::Status GgufParser::ReadType(GgufValueType* type, std::string_view what) {
  uint32_t code = 0;
  RETURN_IF_ERROR(ReadNumber(&code, what));
  if (code > static_cast<uint32_t>(GgufValueType::kF64)) {
    return Corrupt(fmt::format("{} has the unknown value type {}", what, code));
  }
  *type = static_cast<GgufValueType>(code);
  return absl::OkStatus();
}

absl::Status GgufParser::ReadArrayHead(GgufValueType* element_type, uint64_t* count,
                                       std::string_view what) {
  RETURN_IF_ERROR(ReadType(element_type, what));
  return ReadNumber(count, what);
}

absl::Status GgufParser::SkipNestedArrays(uint64_t count, int depth, std::string_view what) {
  if (depth >= kMaxArrayDepth) return Corrupt(fmt::format("{} is nested too deeply", what));
  for (uint64_t i = 0; i < count; ++i) {
    GgufValueType element_type = GgufValueType::kU8;
    uint64_t inner_count = 0;
    RETURN_IF_ERROR(ReadArrayHead(&element_type, &inner_count, what));
    RETURN_IF_ERROR(SkipValue(element_type, inner_count, depth + 1, what));
  }
  return absl::OkStatus();
}

absl::Status GgufParser::SkipValue(GgufValueType type, uint64_t count, int depth,
                                   std::string_view what) {
  if (type == GgufValueType::kArray) return SkipNestedArrays(count, depth, what);
  if (type == GgufValueType::kString) {
    for (uint64_t i = 0; i < count; ++i) {
      std::string_view ignored;
      RETURN_IF_ERROR(ReadString(&ignored, what));
    }
    return absl::OkStatus();
  }
  uint64_t bytes = 0;
  if (__builtin_mul_overflow(count, FixedSize(type), &bytes)) {
    return Corrupt(fmt::format("{} claims {} elements", what, count));
  }
  RETURN_IF_ERROR(Need(bytes, what));
  if (type == GgufValueType::kBool) {
    for (uint64_t i = 0; i < count; ++i) {
      if (static_cast<uint8_t>(file_->data_[position_ + i]) > 1) {
        return Corrupt(fmt::format("{} holds a boolean that is neither 0 nor 1", what));
      }
    }
  }
  position_ += bytes;
  return absl::OkStatus();
}

absl::Status GgufParser::ParseHeader() {
  if (file_->size_ < kMagic.size() ||
      std::memcmp(file_->data_, kMagic.data(), kMagic.size()) != 0) {
    return absl::InvalidArgumentError(
        fmt::format("{}: not a GGUF file (its first bytes are not \"GGUF\"): give the path of a "
                    ".gguf model, or the folder of a Hugging Face checkpoint",
                    file_->path_));
  }
  position_ = kMagic.size();
  RETURN_IF_ERROR(ReadNumber(&file_->version_, "the version"));
  const uint32_t version = file_->version_;
  if (version != 2 && version != 3) {
    const bool big_endian = version != 0 && (version & 0xffff) == 0;
    return absl::InvalidArgumentError(fmt::format(
        "{}: GGUF version {}{}; Penstock reads versions 2 and 3, little-endian: convert it again",
        file_->path_, big_endian ? __builtin_bswap32(version) : version,
        big_endian ? " in big-endian byte order" : ""));
  }
  RETURN_IF_ERROR(ReadNumber(&num_tensors_, "the number of tensors"));
  RETURN_IF_ERROR(ReadNumber(&num_values_, "the number of metadata entries"));
  if (num_values_ > Remaining() / kMinValueBytes) {
    return Corrupt(fmt::format("{} metadata entries can't fit into the {} bytes that follow",
                               num_values_, Remaining()));
  }
  if (num_tensors_ > Remaining() / kMinTensorBytes) {
    return Corrupt(fmt::format("{} tensors can't fit into the {} bytes that follow", num_tensors_,
                               Remaining()));
  }
  return absl::OkStatus();
}

absl::Status GgufParser::ParseMetadata() {
  file_->keys_.reserve(num_values_);
  file_->values_.reserve(num_values_);
  for (uint64_t i = 0; i < num_values_; ++i) {
    std::string_view key;
    RETURN_IF_ERROR(ReadString(&key, fmt::format("the key of metadata entry {}", i)));
    if (key.empty() || key.size() > kMaxNameBytes) {
      return Corrupt(fmt::format("the key of metadata entry {} has {} bytes", i, key.size()));
    }
    const std::string what = fmt::format("metadata \"{}\"", Printable(key));
    GgufFile::Value value{.type = GgufValueType::kU8,
                          .element_type = GgufValueType::kU8,
                          .count = 1,
                          .data = nullptr};
    RETURN_IF_ERROR(ReadType(&value.type, what));
    if (value.type == GgufValueType::kArray) {
      RETURN_IF_ERROR(ReadArrayHead(&value.element_type, &value.count, what));
      value.data = file_->data_ + position_;
      RETURN_IF_ERROR(SkipValue(value.element_type, value.count, 0, what));
    } else {
      value.data = file_->data_ + position_;
      RETURN_IF_ERROR(SkipValue(value.type, 1, 0, what));
    }
    if (!file_->values_.emplace(key, value).second) {
      return Corrupt(fmt::format("{} occurs twice", what));
    }
    file_->keys_.push_back(key);
  }
  return absl::OkStatus();
}

absl::Status GgufParser::ParseTensorEntry(GgufTensor* tensor) {
  RETURN_IF_ERROR(ReadString(&tensor->name, "a tensor's name"));
  if (tensor->name.empty() || tensor->name.size() > kMaxNameBytes) {
    return Corrupt(fmt::format("a tensor's name has {} bytes", tensor->name.size()));
  }
  const std::string what = fmt::format("tensor \"{}\"", Printable(tensor->name));
  uint32_t num_dims = 0;
  RETURN_IF_ERROR(ReadNumber(&num_dims, what));
  if (num_dims == 0 || num_dims > kMaxDims) {
    return Corrupt(fmt::format("{} has {} dimensions, not 1 to {}", what, num_dims, kMaxDims));
  }
  tensor->num_elements = 1;
  for (uint32_t i = 0; i < num_dims; ++i) {
    uint64_t dim = 0;
    RETURN_IF_ERROR(ReadNumber(&dim, what));
    if (dim == 0) return Corrupt(fmt::format("{} has a dimension of size 0", what));
    if (__builtin_mul_overflow(tensor->num_elements, dim, &tensor->num_elements)) {
      return Corrupt(fmt::format("{} has impossibly large dimensions", what));
    }
    tensor->dims.push_back(dim);
  }
  uint32_t type_code = 0;
  RETURN_IF_ERROR(ReadNumber(&type_code, what));
  const GgmlTypeInfo* type = FindGgmlType(type_code);
  if (type == nullptr) {
    return absl::InvalidArgumentError(
        fmt::format("{}: at byte {}: {} has the GGML type code {}, which Penstock can't read: "
                    "convert the model "
                    "to one of {}",
                    file_->path_, position_, what, type_code, GgmlTypeNames()));
  }
  tensor->type = type->type;
  if (tensor->dims[0] % type->block_size != 0) {
    return Corrupt(fmt::format("{} has rows of {} elements, not a multiple of {}'s block of {}",
                               what, tensor->dims[0], type->name, type->block_size));
  }
  if (__builtin_mul_overflow(tensor->num_elements / type->block_size, uint64_t{type->block_bytes},
                             &tensor->num_bytes)) {
    return Corrupt(fmt::format("{} has impossibly large dimensions", what));
  }
  return ReadNumber(&tensor->offset, what);
}

absl::Status GgufParser::ParseTensors() {
  uint64_t alignment = kDefaultAlignment;
  auto declared = file_->FindU64("general.alignment");
  if (!declared.ok()) return declared.status();
  if (declared->has_value()) alignment = **declared;
  if (!std::has_single_bit(alignment) || alignment < kMinAlignment || alignment > kMaxAlignment) {
    return Corrupt(fmt::format("general.alignment is {}, not a power of two from {} to {}",
                               alignment, kMinAlignment, kMaxAlignment));
  }
  file_->tensors_.reserve(num_tensors_);
  file_->tensor_index_.reserve(num_tensors_);
  for (uint64_t i = 0; i < num_tensors_; ++i) {
    GgufTensor tensor{};
    RETURN_IF_ERROR(ParseTensorEntry(&tensor));
    if (tensor.offset % alignment != 0) {
      return Corrupt(fmt::format("tensor \"{}\" has the offset {}, not a multiple of {}",
                                 Printable(tensor.name), tensor.offset, alignment));
    }
    if (!file_->tensor_index_.emplace(tensor.name, i).second) {
      return Corrupt(fmt::format("tensor \"{}\" occurs twice", Printable(tensor.name)));
    }
    file_->tensors_.push_back(std::move(tensor));
  }
  return PlaceTensors((position_ + alignment - 1) & ~(alignment - 1));
}

// The directory counts offsets from the data section; from here on they count from the file's
// start.
absl::Status GgufParser::PlaceTensors(uint64_t data_start) {
  for (GgufTensor& tensor : file_->tensors_) {
    uint64_t end = 0;
    const bool overflow = __builtin_add_overflow(tensor.offset, data_start, &tensor.offset) ||
                          __builtin_add_overflow(tensor.offset, tensor.num_bytes, &end);
    if (overflow) {
      return Corrupt(fmt::format("tensor \"{}\" lies beyond any file", Printable(tensor.name)));
    }
    if (end > file_->size_) {
      return absl::InvalidArgumentError(
          fmt::format("{}: file ends at byte {}, but tensor \"{}\" needs bytes {} to {}: the file "
                      "is cut short, download it again",
                      file_->path_, file_->size_, Printable(tensor.name), tensor.offset, end));
    }
  }
  return CheckOverlaps();
}

absl::Status GgufParser::CheckOverlaps() const {
  std::vector<const GgufTensor*> by_offset;
  for (const GgufTensor& tensor : file_->tensors_) by_offset.push_back(&tensor);
  std::sort(by_offset.begin(), by_offset.end(),
            [](const GgufTensor* a, const GgufTensor* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < by_offset.size(); ++i) {
    const GgufTensor& before = *by_offset[i - 1];
    if (before.offset + before.num_bytes > by_offset[i]->offset) {
      return Corrupt(fmt::format("tensors \"{}\" and \"{}\" overlap", Printable(before.name),
                                 Printable(by_offset[i]->name)));
    }
  }
  return absl::OkStatus();
}

absl::Status GgufParser::Parse() {
  RETURN_IF_ERROR(ParseHeader());
  RETURN_IF_ERROR(ParseMetadata());
  return ParseTensors();
}

}  // namespace penstock
