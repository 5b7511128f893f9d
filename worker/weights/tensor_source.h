// The tensors of a model's files, by role, whatever the format: each format has a table of the
// names it gives the roles (tensor_source.cc).
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
#include "common/formats/gguf.h"
#include "common/formats/safetensors.h"
#include "kernels/ops.h"

namespace penstock::worker {

enum class TensorRole : uint8_t {
  kEmbedding,
  kOutputNorm,
  kHead,
  // Of a layer:
  kAttentionNorm,
  kQ,
  kK,
  kV,
  kO,
  kQBias,
  kKBias,
  kVBias,
  kOBias,
  kMlpNorm,
  kGate,
  kUp,
  kDown,
};

struct SourceTensor {
  std::string name;
  std::string_view type;                        // the format's word for it, for errors
  std::optional<kernels::WeightFormat> format;  // nullopt: no type of a weight
  int64_t block_size = 1;                       // elements of a quantisation block
  std::vector<uint64_t> shape;                  // outermost first
  const std::byte* data = nullptr;
  uint64_t num_bytes = 0;
};

// Immutable. Keeps the files mapped; what it hands out lives as long as it does.
class TensorSource {
 public:
  explicit TensorSource(const std::shared_ptr<const GgufFile>& file);
  explicit TensorSource(const std::shared_ptr<const SafetensorsCheckpoint>& checkpoint);
  TensorSource(const TensorSource&) = delete;
  TensorSource& operator=(const TensorSource&) = delete;

  const std::string& path() const { return path_; }
  const std::vector<SourceTensor>& tensors() const { return tensors_; }
  // The name this format gives a role; `layer` counts for the layers' roles only.
  std::string Name(TensorRole role, int layer = 0) const;
  // Null if there is none.
  const SourceTensor* Find(std::string_view name) const;
  // INVALID_ARGUMENT, naming file and tensor, if there is none, or it has another shape.
  absl::StatusOr<const SourceTensor*> Get(const std::string& name,
                                          const std::vector<uint64_t>& shape) const;
  // The floats of a vector stored as F32, F16 or BF16: a norm, a bias, factors.
  absl::StatusOr<std::vector<float>> GetVector(const std::string& name, int64_t size) const;
  // Whether the decoder needs nothing of a tensor that no role names.
  bool MayIgnore(std::string_view name) const;

 private:
  enum class Format : uint8_t { kGguf, kSafetensors };
  void Add(SourceTensor tensor);
  // "[576, 1536]", in the order the format itself uses.
  std::string ShapeName(const std::vector<uint64_t>& shape) const;

  const Format format_;
  const std::shared_ptr<const void> files_;
  const std::string path_;
  std::vector<SourceTensor> tensors_;
  std::unordered_map<std::string, size_t> index_;
};

}  // namespace penstock::worker
