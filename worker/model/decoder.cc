#include "worker/model/decoder.h"

#include <algorithm>

#include "common/log.h"
#include "common/status.h"

namespace penstock::worker {
namespace {

using kernels::Buffer;

// Rows of logits made at once, at least: the head's weight is read once for so many. More where
// the memory that the layers use by then has room for them.
constexpr int kLogitsBlock = 64;

const float* Floats(const std::unique_ptr<Buffer>& buffer) {
  return buffer == nullptr ? nullptr : buffer->as<float>();
}

// K in how many parts a row-parallel product of `width` is cut on each rank: the model's KV heads
// over the ranks, provided that every part is a whole number of the largest quantisation blocks.
int SegmentsPerRank(const ModelSpec& spec, int num_ranks) {
  constexpr int kBlock = 32;
  const int segments = spec.num_kv_heads;
  const bool even = spec.num_heads * spec.head_size % (segments * kBlock) == 0 &&
                    spec.mlp_width % (segments * kBlock) == 0;
  return even ? segments / num_ranks : 1;
}

// Hands out 64-byte aligned pieces of an arena that is allocated later.
class ArenaPlan {
 public:
  size_t Take(size_t bytes) {
    const size_t at = used_;
    used_ += (bytes + 63) & ~size_t{63};
    peak_ = std::max(peak_, used_);
    return at;
  }
  size_t mark() const { return used_; }
  void Rewind(size_t mark) { used_ = mark; }
  size_t peak() const { return peak_; }

 private:
  size_t used_ = 0, peak_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Create(kernels::Backend* backend,
                                                         const ModelSpec& spec,
                                                         const ModelWeights* weights,
                                                         std::span<const kernels::KvLayer> kv,
                                                         kernels::Collective* group,
                                                         const DecoderOptions& options) {
  std::unique_ptr<Decoder> decoder(new Decoder());
  decoder->backend_ = backend;
  decoder->spec_ = spec;
  decoder->weights_ = weights;
  decoder->kv_ = kv;
  decoder->group_ = group;
  CHECK(static_cast<int>(kv.size()) == spec.num_layers);
  CHECK(static_cast<int>(weights->layers.size()) == spec.num_layers);
  decoder->num_heads_ = spec.num_heads / options.num_ranks;
  decoder->num_kv_heads_ = spec.num_kv_heads / options.num_ranks;
  decoder->mlp_width_ = spec.mlp_width / options.num_ranks;
  if (options.rank_invariant) decoder->num_k_segments_ = SegmentsPerRank(spec, options.num_ranks);
  RETURN_IF_ERROR(decoder->PlanArena(options));
  const int qkv_width = (decoder->num_heads_ + 2 * decoder->num_kv_heads_) * spec.head_size;
  kernels::ReserveParams reserve;
  reserve.max_tokens = options.max_tokens;
  reserve.max_rows = options.max_rows;
  reserve.max_logits = decoder->max_logits_;
  reserve.max_width = std::max({spec.hidden, qkv_width, 2 * decoder->mlp_width_});
  reserve.vocab_size = spec.vocab_size;
  reserve.num_heads = decoder->num_heads_;
  reserve.num_kv_heads = decoder->num_kv_heads_;
  reserve.head_size = spec.head_size;
  reserve.page_size = options.page_size;
  reserve.hidden = spec.hidden;
  reserve.mlp_width = decoder->mlp_width_;
  RETURN_IF_ERROR(backend->Reserve(reserve));
  return decoder;
}

absl::Status Decoder::PlanArena(const DecoderOptions& options) {
  const size_t row = kernels::DTypeSize(backend_->activation_dtype()) * options.max_tokens;
  const size_t hidden = row * spec_.hidden;
  const size_t head_row = row * spec_.head_size;
  ArenaPlan plan;
  const size_t residual = plan.Take(hidden);
  const size_t normed = plan.Take(hidden);
  const size_t segmented = hidden / options.max_tokens * kernels::Backend::kMaxKSegments *
                           std::min(options.max_tokens, kernels::Backend::kMaxSegmentedTokens);
  const size_t partial = plan.Take(std::max(hidden * num_k_segments_, segmented));
  const size_t shared = plan.mark();
  const size_t qkv = plan.Take(head_row * (num_heads_ + 2 * num_kv_heads_));
  const size_t attention = plan.Take(head_row * num_heads_);
  plan.Rewind(shared);
  const size_t gate_up = plan.Take(row * 2 * mlp_width_);
  const size_t activated = plan.Take(row * mlp_width_);
  plan.Rewind(shared);
  const size_t gathered = plan.Take(hidden);
  const size_t logits_row = sizeof(float) * spec_.vocab_size;
  const size_t room = (plan.peak() - std::min(plan.peak(), plan.mark())) / logits_row;
  max_logits_ = std::min(std::max(kLogitsBlock, std::min(static_cast<int>(room), options.max_rows)),
                         options.max_tokens);
  const size_t logits = plan.Take(logits_row * max_logits_);
  ASSIGN_OR_RETURN(arena_, backend_->Allocate(plan.peak()));
  auto* base = static_cast<std::byte*>(arena_->data);
  residual_ = base + residual;
  normed_ = base + normed;
  partial_ = base + partial;
  qkv_ = base + qkv;
  attention_ = base + attention;
  gate_up_ = base + gate_up;
  activated_ = base + activated;
  gathered_ = base + gathered;
  logits_ = reinterpret_cast<float*>(base + logits);
  return absl::OkStatus();
}

absl::Status Decoder::CopyPages(std::span<const kernels::PageCopy> copies) {
  return backend_->CopyPages(
      {.layers = kv_,
       .page_elements = int64_t{num_kv_heads_} * kv_[0].page_size * spec_.head_size,
       .copies = copies});
}

absl::Status Decoder::Step(const kernels::StepInputs& step, kernels::TokenTable tokens) {
  ASSIGN_OR_RETURN(const kernels::Backend::BegunStep begun, backend_->BeginStep(step));
  if (!begun.replayed) {
    RETURN_IF_ERROR(Forward(begun.rows, tokens));
    RETURN_IF_ERROR(Sample(step, tokens));
  }
  return backend_->EndStep();
}

absl::Status Decoder::Capture(int32_t num_rows, kernels::TokenTable tokens) {
  ASSIGN_OR_RETURN(const kernels::StepInputs step, backend_->BeginCapture(num_rows));
  RETURN_IF_ERROR(Forward(step.rows, tokens));
  RETURN_IF_ERROR(Sample(step, tokens));
  return backend_->EndCapture();
}

absl::Status Decoder::Forward(const kernels::BatchRows& batch, kernels::TokenTable tokens) {
  const int num_tokens = batch.num_tokens;
  RETURN_IF_ERROR(backend_->Embed({.table = weights_->embedding.get(),
                                   .tokens = tokens,
                                   .batch = &batch,
                                   .out = residual_,
                                   .scale = spec_.embedding_scale}));
  const void* pending = nullptr;  // the previous block's product, not yet in the residual
  for (int i = 0; i < spec_.num_layers; ++i) {
    const LayerWeights& layer = weights_->layers[i];
    RETURN_IF_ERROR(Norm(pending, layer.attention_norm.get(), num_tokens));
    RETURN_IF_ERROR(AttentionBlock(layer, kv_[i], batch));
    RETURN_IF_ERROR(Norm(partial_, layer.mlp_norm.get(), num_tokens));
    RETURN_IF_ERROR(MlpBlock(layer, num_tokens));
    pending = partial_;
  }
  return Norm(pending, weights_->output_norm.get(), num_tokens);
}

// The float32 mode's number is the model's; else it is what is fastest.
int Decoder::Segments(const kernels::Weight* weight, int num_tokens) const {
  if (num_k_segments_ > 1 || group_ != nullptr || weight == nullptr) return num_k_segments_;
  return backend_->KSegments(*weight, num_tokens);
}

absl::Status Decoder::Norm(const void* x, const Buffer* weight, int num_tokens) {
  return backend_->AddRmsNorm({.x = x,
                               .num_k_segments = partial_segments_,
                               .group = group_,
                               .residual = residual_,
                               .weight = weight == nullptr ? nullptr : weight->as<float>(),
                               .out = normed_,
                               .num_tokens = num_tokens,
                               .hidden = spec_.hidden,
                               .epsilon = spec_.norm_epsilon});
}

absl::Status Decoder::AttentionBlock(const LayerWeights& layer, const kernels::KvLayer& kv,
                                     const kernels::BatchRows& batch) {
  const int64_t qkv_width = int64_t{num_heads_ + 2 * num_kv_heads_} * spec_.head_size;
  const int64_t out_width = int64_t{num_heads_} * spec_.head_size;
  RETURN_IF_ERROR(backend_->Linear({.x = normed_,
                                    .x_stride = spec_.hidden,
                                    .weight = layer.qkv.get(),
                                    .bias = Floats(layer.qkv_bias),
                                    .out = qkv_,
                                    .num_tokens = batch.num_tokens}));
  const Buffer* cos_sin = weights_->cos_sin.get();
  RETURN_IF_ERROR(
      backend_->RopeKvWrite({.qkv = qkv_,
                             .num_heads = num_heads_,
                             .num_kv_heads = num_kv_heads_,
                             .head_size = spec_.head_size,
                             .rotary_size = spec_.rope.rotary_size,
                             .interleaved = spec_.rope.interleaved,
                             .cos_sin = cos_sin == nullptr ? nullptr : cos_sin->as<float>(),
                             .batch = &batch,
                             .kv = kv}));
  RETURN_IF_ERROR(backend_->Attention({.q = qkv_,
                                       .q_stride = qkv_width,
                                       .out = attention_,
                                       .num_heads = num_heads_,
                                       .num_kv_heads = num_kv_heads_,
                                       .head_size = spec_.head_size,
                                       .scale = spec_.attention_scale,
                                       .batch = &batch,
                                       .kv = kv}));
  partial_segments_ = Segments(layer.o.get(), batch.num_tokens);
  return backend_->Linear({.x = attention_,
                           .x_stride = out_width,
                           .weight = layer.o.get(),
                           .bias = Floats(layer.o_bias),
                           .out = partial_,
                           .num_tokens = batch.num_tokens,
                           .num_k_segments = partial_segments_});
}

absl::Status Decoder::MlpBlock(const LayerWeights& layer, int num_tokens) {
  RETURN_IF_ERROR(backend_->GatedLinear({.x = normed_,
                                         .x_stride = spec_.hidden,
                                         .weight = layer.gate_up.get(),
                                         .product = gate_up_,
                                         .out = activated_,
                                         .num_tokens = num_tokens}));
  partial_segments_ = Segments(layer.down.get(), num_tokens);
  return backend_->Linear({.x = activated_,
                           .x_stride = mlp_width_,
                           .weight = layer.down.get(),
                           .out = partial_,
                           .num_tokens = num_tokens,
                           .num_k_segments = partial_segments_});
}

absl::Status Decoder::Sample(const kernels::StepInputs& step, kernels::TokenTable tokens) {
  const size_t total = step.outputs.size();
  for (size_t begin = 0; begin < total; begin += max_logits_) {
    const int count = static_cast<int>(std::min<size_t>(max_logits_, total - begin));
    RETURN_IF_ERROR(backend_->GatherRows({.x = normed_,
                                          .index = step.output_token.data() + begin,
                                          .out = gathered_,
                                          .count = count,
                                          .hidden = spec_.hidden}));
    RETURN_IF_ERROR(backend_->Logits({.x = gathered_,
                                      .head = weights_->head.get(),
                                      .group = group_,
                                      .out = logits_,
                                      .count = count,
                                      .vocab_size = spec_.vocab_size}));
    RETURN_IF_ERROR(backend_->Sample({.logits = logits_,
                                      .count = count,
                                      .vocab_size = spec_.vocab_size,
                                      .rows = step.outputs.data() + begin,
                                      .tokens = tokens,
                                      .ids_out = step.ids.data() + begin,
                                      .logprobs_out = step.logprobs.data() + begin}));
  }
  return absl::OkStatus();
}

}  // namespace penstock::worker
