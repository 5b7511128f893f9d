// Loads a model's weights onto a backend: tensors by their roles, every shape checked, this rank's
// share taken. Or makes random ones of the same shapes (--load-format=dummy).
//
// Shares under tensor parallelism, rank r of n: q, k and v by heads, gate and up by rows (rank's
// gate rows, then its up rows), o and down by columns (cut at a quantisation block's border), the
// output head by rows; embedding and norms whole.
#pragma once

#include <functional>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "worker/model/spec.h"
#include "worker/weights/model_weights.h"
#include "worker/weights/tensor_source.h"

namespace penstock::worker {

struct Shard {
  int rank = 0;
  int num_ranks = 1;
};

// OK if the model can be cut for shard.num_ranks; else INVALID_ARGUMENT, naming the sizes that
// would work. `source` null: heads alone are checked, for weights that no file holds.
absl::Status CheckShard(const TensorSource* source, const ModelSpec& spec, const Shard& shard);

// Reports progress, 0..1, by bytes (of random weights: by layers); an error it returns ends the
// loading.
using LoadProgress = std::function<absl::Status(float)>;

// `source` may go once this returns. INVALID_ARGUMENT when a tensor is missing, of another shape
// than the spec asks for, of a type that is no weight, or unknown (what it does would be left out).
// `source` null: random weights in spec.random_format, norms of 1, biases of 0.
absl::StatusOr<ModelWeights> LoadWeights(const TensorSource* source, const ModelSpec& spec,
                                         const Shard& shard, int max_model_len,
                                         kernels::Backend* backend, const LoadProgress& progress);

}  // namespace penstock::worker
