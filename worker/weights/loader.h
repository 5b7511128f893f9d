// Loads a GGUF model's weights onto a backend: maps tensors to roles, checks every shape, takes
// this rank's share.
//
// Shares under tensor parallelism, rank r of n: q, k and v by heads, gate and up by rows (rank's
// gate rows, then its up rows), o and down by columns (cut at a quantisation block's border), the
// output head by rows; embedding and norms whole.
#pragma once

#include <functional>

#include "absl/status/statusor.h"
#include "common/formats/gguf.h"
#include "kernels/ops.h"
#include "worker/model/spec.h"
#include "worker/weights/model_weights.h"

namespace penstock::worker {

struct Shard {
  int rank = 0;
  int num_ranks = 1;
};

// OK if the model can be cut for shard.num_ranks; else INVALID_ARGUMENT, naming the sizes that
// would work. `file` null: heads alone are checked, for a backend that needs no weights.
absl::Status CheckShard(const GgufFile* file, const ModelSpec& spec, const Shard& shard);

// Reports progress, 0..1, by bytes; an error it returns ends the loading.
using LoadProgress = std::function<absl::Status(float)>;

// The file's data may go once this returns. INVALID_ARGUMENT when a tensor is missing, of another
// shape than the metadata ask for, of a type that is no weight, or unknown (what it does would be
// left out).
absl::StatusOr<ModelWeights> LoadWeights(const GgufFile& file, const ModelSpec& spec,
                                         const Shard& shard, int max_model_len,
                                         kernels::Backend* backend, const LoadProgress& progress);

}  // namespace penstock::worker
