#include "common/formats/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "common/status.h"

namespace penstock {
namespace {

absl::Status OpenError(const std::string& path) {
  const int error = errno;
  const std::string text = fmt::format("{}: {}", path, std::strerror(error));
  if (error == ENOENT || error == ENOTDIR) return NotFound("{}: check the model's path", text);
  if (error == EACCES || error == EPERM) {
    return absl::PermissionDeniedError(text + ": make the file readable for this user");
  }
  return absl::InternalError(text);
}

}  // namespace

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path, std::string_view advice) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return OpenError(path);
  struct stat info {};
  if (fstat(fd, &info) != 0) {
    const absl::Status status = OpenError(path);
    close(fd);
    return status;
  }
  if (!S_ISREG(info.st_mode) || info.st_size == 0) {
    close(fd);
    return InvalidArgument("{}: {}: {}", path,
                           S_ISREG(info.st_mode) ? "the file is empty" : "not a regular file",
                           advice);
  }
  MappedFile file;
  file.size_ = static_cast<uint64_t>(info.st_size);
  void* mapping = mmap(nullptr, file.size_, PROT_READ, MAP_SHARED, fd, 0);
  const absl::Status error = mapping == MAP_FAILED ? OpenError(path) : absl::OkStatus();
  close(fd);
  RETURN_IF_ERROR(error);
  file.data_ = static_cast<const std::byte*>(mapping);
  return file;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
}

}  // namespace penstock
