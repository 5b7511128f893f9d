#include "worker/weights/checkpoint.h"

#include "common/formats/gguf.h"
#include "common/formats/hf_config.h"
#include "common/formats/safetensors.h"
#include "common/status.h"

namespace penstock::worker {

absl::StatusOr<Checkpoint> OpenCheckpoint(const std::string& path, bool with_tensors) {
  Checkpoint checkpoint;
  if (IsHfCheckpoint(path)) {
    ASSIGN_OR_RETURN(checkpoint.spec, ReadHfModelSpec(path));
    if (!with_tensors) return checkpoint;
    ASSIGN_OR_RETURN(const auto tensors, SafetensorsCheckpoint::Open(path));
    checkpoint.tensors = std::make_unique<const TensorSource>(tensors);
    return checkpoint;
  }
  ASSIGN_OR_RETURN(const auto file, GgufFile::Open(path));
  ASSIGN_OR_RETURN(checkpoint.spec, ReadModelSpec(*file));
  if (with_tensors) checkpoint.tensors = std::make_unique<const TensorSource>(file);
  return checkpoint;
}

}  // namespace penstock::worker
