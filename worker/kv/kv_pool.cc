#include "worker/kv/kv_pool.h"

#include <algorithm>

#include "common/status.h"

namespace penstock::worker {

absl::StatusOr<KvPoolPlan> PlanKvPool(const ModelSpec& spec, const KvPoolOptions& options) {
  const int64_t page_size = options.page_size;
  const int64_t token_bytes = int64_t{spec.num_kv_heads / options.num_ranks} * spec.head_size *
                              static_cast<int64_t>(kernels::DTypeSize(options.dtype));
  const int64_t page_bytes = 2 * token_bytes * page_size * spec.num_layers;
  const int64_t pages_a_request = (options.max_model_len + page_size - 1) / page_size;
  int64_t num_pages = options.num_pages;
  if (num_pages == 0) {
    num_pages =
        std::min((options.memory_mb << 20) / page_bytes, pages_a_request * options.num_slots);
  }
  KvPoolPlan plan;
  plan.max_model_len = options.max_model_len;
  if (num_pages < pages_a_request) {
    if (options.max_model_len_given || num_pages == 0) {
      return InvalidArgument(
          "the KV cache has room for {} tokens, fewer than --max-model-len {}: raise {} to at "
          "least "
          "{} (or --num-kv-pages to {}), or lower --max-model-len",
          num_pages * page_size, options.max_model_len, options.memory_flag,
          ((pages_a_request * page_bytes) >> 20) + 1, pages_a_request);
    }
    plan.max_model_len = static_cast<int>(num_pages * page_size);
  }
  plan.num_pages = static_cast<int>(num_pages);
  plan.layer_bytes = num_pages * page_size * token_bytes;
  return plan;
}

absl::Status KvPool::Allocate(kernels::Backend* backend, const KvPoolOptions& options,
                              const KvPoolPlan& plan) {
  for (kernels::KvLayer& layer : layers_) {
    layer.dtype = options.dtype;
    layer.page_size = options.page_size;
    if (!backend->needs_weights()) continue;
    for (void** data : {&layer.k, &layer.v}) {
      ASSIGN_OR_RETURN(std::unique_ptr<kernels::Buffer> buffer,
                       backend->Allocate(plan.layer_bytes));
      *data = buffer->data;
      buffers_.push_back(std::move(buffer));
    }
  }
  return absl::OkStatus();
}

}  // namespace penstock::worker
