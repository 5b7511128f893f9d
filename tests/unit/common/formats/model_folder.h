// A folder for a test's Hugging Face checkpoint, and the bytes of safetensors files. Writes
// whatever it is told, sound or not.
#pragma once

#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

namespace penstock {

// Removed with the object.
class ModelFolder {
 public:
  ModelFolder() {
    static std::atomic<int> number{0};
    path_ = std::filesystem::temp_directory_path() /
            fmt::format("checkpoint-{}-{}", getpid(), number.fetch_add(1));
    std::filesystem::create_directory(path_);
  }
  ~ModelFolder() { std::filesystem::remove_all(path_); }
  ModelFolder(const ModelFolder&) = delete;
  ModelFolder& operator=(const ModelFolder&) = delete;

  std::string path() const { return path_.string(); }
  std::string File(const std::string& name) const { return (path_ / name).string(); }
  void Write(const std::string& name, std::string_view bytes) const {
    std::ofstream(path_ / name, std::ios::binary | std::ios::trunc) << bytes;
  }

 private:
  std::filesystem::path path_;
};

// A file with this header and these bytes of data. The header's length is told as `claimed` if that
// is given.
inline std::string SafetensorsBytes(const std::string& header, const std::string& data,
                                    uint64_t claimed = UINT64_MAX) {
  const uint64_t size = claimed == UINT64_MAX ? header.size() : claimed;
  std::string bytes(sizeof(size), '\0');
  std::memcpy(bytes.data(), &size, sizeof(size));
  return bytes + header + data;
}

// A sound file, tensor by tensor.
class SafetensorsBuilder {
 public:
  SafetensorsBuilder& Tensor(std::string_view name, std::string_view dtype,
                             const std::vector<uint64_t>& shape, const std::string& data) {
    header_ += fmt::format("{}\"{}\":{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                           header_.empty() ? "" : ",", name, dtype, fmt::join(shape, ","),
                           data_.size(), data_.size() + data.size());
    data_ += data;
    return *this;
  }
  std::string Build() const { return SafetensorsBytes("{" + header_ + "}", data_); }

 private:
  std::string header_, data_;
};

}  // namespace penstock
