// A file mapped into memory for reading.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"

namespace penstock {

// Immutable; may be read from any thread. The mapping is shared with the page cache: whoever cuts
// the file short while it is open kills its readers with SIGBUS, so replace a model's file by
// renaming, never in place.
class MappedFile {
 public:
  // NotFound if there is no such file, PermissionDenied or Internal if it can't be opened or
  // mapped, InvalidArgument if it is empty or no regular file; then `advice` ends the message.
  static absl::StatusOr<MappedFile> Open(const std::string& path, std::string_view advice);

  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~MappedFile();

  const std::byte* data() const { return data_; }  // aligned to a page
  uint64_t size() const { return size_; }

 private:
  const std::byte* data_ = nullptr;
  uint64_t size_ = 0;
};

}  // namespace penstock
