// Small float32 tensors of a GGUF file: norms, biases, rope factors.
#pragma once

#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/formats/gguf.h"

namespace penstock::worker {

// The tensor's `size` floats. INVALID_ARGUMENT, naming the tensor, when it is absent, of another
// length or not F32.
absl::StatusOr<std::vector<float>> ReadVector(const GgufFile& file, std::string_view name,
                                              int64_t size);

// "[576, 1536]", in the file's order.
std::string ShapeName(const GgufTensor& tensor);

}  // namespace penstock::worker
