// The parser behind GgufFile::Open: walks a mapped file once and fills in the GgufFile. Internal.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "common/formats/gguf.h"
#include "common/status.h"

namespace penstock {

class GgufParser {
 public:
  // `file` has path_, data_ and size_ set and must outlive the parser.
  explicit GgufParser(GgufFile* file) : file_(file) {}

  absl::Status Parse();

 private:
  absl::Status ParseHeader();
  absl::Status ParseMetadata();
  absl::Status ParseTensors();
  absl::Status ParseTensorEntry(GgufTensor* tensor);
  absl::Status PlaceTensors(uint64_t data_start);
  absl::Status CheckOverlaps() const;

  // Moves past one value of this type and checks it. `what` names it in errors.
  absl::Status SkipValue(GgufValueType type, uint64_t count, int depth, std::string_view what);
  absl::Status SkipNestedArrays(uint64_t count, int depth, std::string_view what);
  absl::Status ReadArrayHead(GgufValueType* element_type, uint64_t* count, std::string_view what);
  absl::Status ReadType(GgufValueType* type, std::string_view what);
  absl::Status ReadString(std::string_view* value, std::string_view what);
  template <typename T>
  absl::Status ReadNumber(T* value, std::string_view what);

  // OK if `bytes` more bytes are in the file.
  absl::Status Need(uint64_t bytes, std::string_view what) const;
  absl::Status Corrupt(std::string_view problem) const;
  uint64_t Remaining() const { return file_->size_ - position_; }

  GgufFile* file_;
  uint64_t position_ = 0;
  uint64_t num_values_ = 0;
  uint64_t num_tensors_ = 0;
};

}  // namespace penstock
