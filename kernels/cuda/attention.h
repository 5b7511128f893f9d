// Paged attention on the GPU: the Attention op of the CUDA backend. bfloat16, head sizes 64 and
// 128, up to 16 query heads a KV head.
//
// A step is Plan once, then Run in every layer, on one stream. Rows of one token (batch.num_single)
// go to the decode kernel (attention_decode.h), the others to the prefill kernel
// (attention_prefill.h). A batch of single rows alone may be captured in a CUDA graph, Plan with
// it: lengths, slots and pages are read on the device when the graph runs, and a row of context
// length 0 (padding) gets zeros. With longer rows Plan works on the host too (host_token_begin,
// host_context_len) and can't be captured.
//
// Single-row kernels read context_len, slot_of_token, page_table and the pages of earlier tokens
// before earlier kernels of the stream have ended. That is right as long as nothing after Plan in
// the step writes them but RopeKvWrite the step's own tokens: Plan is where the stream's earlier
// work has ended.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/attention_prefill.h"
#include "kernels/ops.h"

namespace penstock::kernels::cuda {

enum class PrefillPath : uint8_t { kBest, kPortable, kFlash };

struct AttentionConfig {
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_size = 0;
  int32_t page_size = 0;   // a power of two >= 8
  int32_t max_rows = 0;    // of a step
  int32_t max_tokens = 0;  // of a step
  PrefillPath prefill = PrefillPath::kBest;
  int32_t decode_variant = -1;  // -1: the best for the batch
  int32_t decode_snap_tokens = 128;
};

// One for each step that may be planned at a time on a stream: all graphs and eager steps of a
// worker share one. Not thread-safe. Its memory is allocated at creation, on the current device.
class Attention {
 public:
  // UNIMPLEMENTED names a shape there is no kernel for; RESOURCE_EXHAUSTED a lack of memory.
  static absl::StatusOr<std::unique_ptr<Attention>> Create(const AttentionConfig& config);
  ~Attention();
  Attention(const Attention&) = delete;
  Attention& operator=(const Attention&) = delete;

  absl::Status Plan(const BatchRows& batch, cudaStream_t stream);
  // params.batch is the batch of the last Plan.
  absl::Status Run(const AttentionParams& params, cudaStream_t stream);

  size_t device_bytes() const { return device_bytes_; }
  bool uses_flash_prefill() const { return flash_; }

 private:
  // Host lists of the plans in flight. A list is written again three plans later, when its copy has
  // long been made; the event proves it.
  struct Staging {
    void* memory = nullptr;
    cudaEvent_t copied = nullptr;
  };
  static constexpr int kPlansInFlight = 3;

  Attention() = default;
  absl::Status Init(const AttentionConfig& config);
  absl::Status PlanPrefill(const BatchRows& batch, cudaStream_t stream);

  // The decode kernel for a batch of so many rows.
  const DecodeConfig& DecodeFor(int32_t num_rows) const;

  DecodeConfig wide_;  // for few rows
  DecodeConfig deep_;
  DecodeWorkspace decode_workspace_;
  PrefillConfig prefill_;
  bool flash_ = false;
  std::optional<PrefillPlanner> planner_;
  std::array<Staging, kPlansInFlight> staging_;
  int next_staging_ = 0;
  size_t num_items_ = 0;  // of the last plan
  PrefillItems items_;
  void* device_memory_ = nullptr;
  void* device_items_ = nullptr;
  size_t device_bytes_ = 0;
};

}  // namespace penstock::kernels::cuda
