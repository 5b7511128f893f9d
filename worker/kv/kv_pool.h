// The pages that keys and values live in: for each layer one K and one V buffer of num_pages pages.
// Which request has which page is the scheduler's business.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "worker/model/spec.h"

namespace penstock::worker {

struct KvPoolOptions {
  int num_ranks = 1;
  int page_size = 16;  // tokens
  kernels::DType dtype = kernels::DType::kF16;
  int num_slots = 256;
  int max_model_len = 0;             // of a request
  bool max_model_len_given = false;  // by the user: then it is not lowered to what fits
  int64_t memory_mb = 1024;          // of this rank, all layers
  int num_pages = 0;                 // > 0: overrides memory_mb
  const char* memory_flag = "--kv-cache-memory-mb";  // named in errors
};

// Sizes of a pool. Pure.
struct KvPoolPlan {
  int num_pages = 0;
  int max_model_len = 0;    // as asked for, or the longest that fits
  int64_t layer_bytes = 0;  // of K, and of V likewise
};

// As many pages as the memory holds, but no more than num_slots requests of max_model_len could
// fill. INVALID_ARGUMENT when not even one request of the length the user asked for fits; says what
// to change.
absl::StatusOr<KvPoolPlan> PlanKvPool(const ModelSpec& spec, const KvPoolOptions& options);

class KvPool {
 public:
  explicit KvPool(int num_layers) : layers_(num_layers) {}
  // Fills in the layers; once. With a backend that needs no weights no memory is taken. `backend`
  // outlives the pool. RESOURCE_EXHAUSTED when it does not fit.
  absl::Status Allocate(kernels::Backend* backend, const KvPoolOptions& options,
                        const KvPoolPlan& plan);
  // At one address from the beginning.
  std::span<const kernels::KvLayer> layers() const { return layers_; }

 private:
  std::vector<std::unique_ptr<kernels::Buffer>> buffers_;
  std::vector<kernels::KvLayer> layers_;
};

}  // namespace penstock::worker
