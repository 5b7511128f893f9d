// The one decoder: a transformer as a sequence of calls of kernels/ops.h, whatever the family and
// the device.
//
// Owns the arena of activations, planned once for the largest step. Nothing is allocated per step.
// One thread drives it (the backend's).
#pragma once

#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "worker/model/spec.h"
#include "worker/weights/model_weights.h"

namespace penstock::worker {

struct DecoderOptions {
  int num_ranks = 1;
  int max_tokens = 512;  // of a step
  int max_rows = 256;    // of a step
  int page_size = 16;    // tokens
  // float32 mode: row-parallel products are cut by the whole model's KV heads, so that their parts
  // are summed in one order whatever the number of ranks (see kernels::Collective).
  bool rank_invariant = false;
};

class Decoder {
 public:
  // backend, weights, kv (one entry a layer, filled before the first step) and group (null: one
  // rank) outlive the decoder. With a backend that needs no weights, `weights` is empty.
  // RESOURCE_EXHAUSTED when the activations do not fit.
  static absl::StatusOr<std::unique_ptr<Decoder>> Create(kernels::Backend* backend,
                                                         const ModelSpec& spec,
                                                         const ModelWeights* weights,
                                                         std::span<const kernels::KvLayer> kv,
                                                         kernels::Collective* group,
                                                         const DecoderOptions& options);

  // Queues the copies, for the next step; see Backend::CopyPages.
  absl::Status CopyPages(std::span<const kernels::PageCopy> copies);

  // Queues a step: the layers over its tokens, then its outputs. Returns before it has run, where
  // the backend does; the backend's WaitStep says when.
  absl::Status Step(const kernels::StepInputs& step, kernels::TokenTable tokens);

  // Has the backend capture a step of num_rows rows of one token; see Backend::CaptureSizes.
  absl::Status Capture(int32_t num_rows, kernels::TokenTable tokens);

  // Of which the row-parallel products are cut, per rank; 1 unless rank_invariant.
  int num_k_segments() const { return num_k_segments_; }

 private:
  Decoder() = default;
  absl::Status PlanArena(const DecoderOptions& options);
  absl::Status Forward(const kernels::BatchRows& batch, kernels::TokenTable tokens);
  absl::Status Sample(const kernels::StepInputs& step, kernels::TokenTable tokens);
  absl::Status AttentionBlock(const LayerWeights& layer, const kernels::KvLayer& kv,
                              const kernels::BatchRows& batch);
  absl::Status MlpBlock(const LayerWeights& layer, int num_tokens);
  // Of a product that goes to partial_.
  int Segments(const kernels::Weight* weight, int num_tokens) const;
  absl::Status Norm(const void* x, const kernels::Buffer* weight, int num_tokens);

  kernels::Backend* backend_ = nullptr;
  ModelSpec spec_;
  const ModelWeights* weights_ = nullptr;
  std::span<const kernels::KvLayer> kv_;
  kernels::Collective* group_ = nullptr;
  int num_heads_ = 0, num_kv_heads_ = 0, mlp_width_ = 0;  // this rank's share
  int num_k_segments_ = 1;
  int partial_segments_ = 1;  // of what lies in partial_
  int max_logits_ = 0;

  std::unique_ptr<kernels::Buffer> arena_;
  void* residual_ = nullptr;  // [T, D]
  void* normed_ = nullptr;    // [T, D]
  void* partial_ =
      nullptr;  // [partial_segments_, T, D]: row-parallel products before they are summed
  // The next three pairs are never alive together and share memory.
  void* qkv_ = nullptr;        // [T, (H + 2G) * E]
  void* attention_ = nullptr;  // [T, H * E]
  void* gate_up_ = nullptr;    // [T, 2F]
  void* activated_ = nullptr;  // [T, F]
  void* gathered_ = nullptr;   // [max_logits, D]
  float* logits_ = nullptr;    // [max_logits, V]
};

}  // namespace penstock::worker
