// A model as its files have it: a GGUF file, or a folder with a Hugging Face checkpoint.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "worker/model/spec.h"
#include "worker/weights/tensor_source.h"

namespace penstock::worker {

struct Checkpoint {
  ModelSpec spec;
  std::unique_ptr<const TensorSource> tensors;  // null if they were not asked for
};

// `path` is a GGUF file or a folder. Without `with_tensors` a folder needs its config.json alone.
// NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT and UNIMPLEMENTED name the file and what to do.
absl::StatusOr<Checkpoint> OpenCheckpoint(const std::string& path, bool with_tensors);

}  // namespace penstock::worker
