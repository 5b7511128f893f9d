// Safetensors checkpoints: one file, or shards with an index, over read-only mappings.
//
// A file is 8 bytes N, little-endian; N bytes of JSON, {"name": {"dtype": "BF16", "shape": [2, 3],
// "data_offsets": [begin, end]}, ...}, offsets counted from the end of the header; then the
// tensors' bytes, row-major, without holes. Source: README.md of the safetensors project.
//
// Everything is checked in Open, so that an open checkpoint can be read without further checks.
// Errors name the file, the tensor and what to do. Immutable: all methods may be called from any
// thread, and what they hand out lives as long as the object.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"
#include "common/formats/mapped_file.h"

namespace penstock {

struct SafetensorsTensor {
  std::string name;
  std::string_view dtype;       // the format's name for it: F32, F16, BF16, I64, ...
  std::vector<uint64_t> shape;  // outermost first, as PyTorch has it; empty: a scalar
  uint64_t num_bytes = 0;
  const std::byte* data = nullptr;  // of no particular alignment
};

// One file's tensors, in the order of their bytes. `file` is its mapping and outlives them; `path`
// is for errors. InvalidArgument if the file isn't sound.
absl::StatusOr<std::vector<SafetensorsTensor>> ParseSafetensors(const MappedFile& file,
                                                                const std::string& path);

class SafetensorsCheckpoint {
 public:
  // `dir`/model.safetensors, or all shards of `dir`/model.safetensors.index.json. NotFound if there
  // is neither or a shard is absent; InvalidArgument if a file isn't sound or index and shards
  // contradict each other.
  static absl::StatusOr<std::shared_ptr<const SafetensorsCheckpoint>> Open(const std::string& dir);

  const std::string& dir() const { return dir_; }
  const std::vector<SafetensorsTensor>& tensors() const { return tensors_; }

 private:
  SafetensorsCheckpoint() = default;
  absl::Status OpenFile(const std::string& name);
  absl::Status OpenShards(const std::string& index_path);
  // Shard of every tensor, by the index.
  using WeightMap = std::unordered_map<std::string, std::string>;
  absl::StatusOr<WeightMap> ReadIndex(const std::string& index_path) const;

  std::string dir_;
  std::vector<MappedFile> files_;
  std::vector<SafetensorsTensor> tensors_;
};

}  // namespace penstock
