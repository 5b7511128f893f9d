#include "worker/weights/vectors.h"

#include <cstring>

#include "common/status.h"

namespace penstock::worker {

std::string ShapeName(const GgufTensor& tensor) {
  return fmt::format("[{}]", fmt::join(tensor.dims, ", "));
}

absl::StatusOr<std::vector<float>> ReadVector(const GgufFile& file, std::string_view name,
                                              int64_t size) {
  ASSIGN_OR_RETURN(const GgufTensor* tensor, file.GetTensor(name));
  if (tensor->dims.size() != 1 || tensor->dims[0] != static_cast<uint64_t>(size)) {
    return InvalidArgument("{}: tensor {} is {}, but the model's metadata ask for [{}]",
                           file.path(), name, ShapeName(*tensor), size);
  }
  if (tensor->type != GgmlType::kF32) {
    return InvalidArgument("{}: tensor {} is stored as {}: norms, biases and factors must be F32",
                           file.path(), name, GetGgmlTypeInfo(tensor->type).name);
  }
  std::vector<float> values(size);
  std::memcpy(values.data(), file.TensorData(*tensor), size * sizeof(float));
  return values;
}

}  // namespace penstock::worker
