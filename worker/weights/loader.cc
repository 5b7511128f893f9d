#include "worker/weights/loader.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <set>
#include <string>

#include "common/shm/layout.h"
#include "common/status.h"

namespace penstock::worker {
namespace {

using kernels::WeightSegment;
using kernels::WeightUse;

// Largest quantisation block of a tensor over all layers; 1 where it is absent (LoadWeights says
// so).
int64_t LargestBlock(const TensorSource* source, const ModelSpec& spec, TensorRole role) {
  int64_t block = 1;
  for (int layer = 0; source != nullptr && layer < spec.num_layers; ++layer) {
    const SourceTensor* tensor = source->Find(source->Name(role, layer));
    if (tensor != nullptr) block = std::max(block, tensor->block_size);
  }
  return block;
}

// What stands in the way of n ranks; empty: nothing.
std::string ShardProblem(const ModelSpec& spec, int64_t o_block, int64_t down_block, int n) {
  if (spec.num_kv_heads % n != 0 || spec.num_heads % n != 0) {
    return fmt::format("{} heads and {} KV heads do not divide by it", spec.num_heads,
                       spec.num_kv_heads);
  }
  if (spec.mlp_width % n != 0) {
    return fmt::format("the MLP's width of {} does not divide by it", spec.mlp_width);
  }
  if (spec.vocab_size % n != 0) {
    return fmt::format("the vocabulary of {} does not divide by it", spec.vocab_size);
  }
  if (int64_t{spec.num_heads} * spec.head_size / n % o_block != 0) {
    return fmt::format("it would cut attn_output inside a quantisation block of {}", o_block);
  }
  if (spec.mlp_width / n % down_block != 0) {
    return fmt::format("it would cut ffn_down inside a quantisation block of {}", down_block);
  }
  return "";
}

// Loads tensors by role, one after the other, and keeps account of what has been used. Without a
// source its segments have shapes but no data.
class Loader {
 public:
  Loader(const TensorSource* source, const ModelSpec& spec, const Shard& shard,
         kernels::Backend* backend, const LoadProgress& progress)
      : source_(source), spec_(spec), shard_(shard), backend_(backend), progress_(progress) {
    if (source == nullptr) return;
    for (const SourceTensor& tensor : source->tensors()) total_bytes_ += tensor.num_bytes;
  }

  absl::StatusOr<ModelWeights> Load(int max_model_len);

 private:
  absl::Status LoadHead(ModelWeights* weights);
  absl::Status LoadLayer(int layer, LayerWeights* weights);
  absl::StatusOr<std::unique_ptr<kernels::Buffer>> QkvBias(int layer);
  // The role's tensor if it is a [rows, cols] matrix of a weight's type; marks it used.
  absl::StatusOr<WeightSegment> Matrix(TensorRole role, int layer, int64_t rows, int64_t cols);
  // This rank's rows or columns of it.
  absl::StatusOr<WeightSegment> RowShare(TensorRole role, int layer, int64_t rows, int64_t cols);
  absl::StatusOr<WeightSegment> ColumnShare(TensorRole role, int layer, int64_t rows, int64_t cols);
  absl::StatusOr<std::unique_ptr<kernels::Weight>> Pack(std::span<const WeightSegment> segments,
                                                        WeightUse use = WeightUse::kLinear);
  // The role's tensor if it has `size` elements; marks it used. `otherwise` without a source.
  absl::StatusOr<std::vector<float>> Values(TensorRole role, int layer, int64_t size,
                                            float otherwise);
  absl::StatusOr<std::unique_ptr<kernels::Buffer>> Norm(TensorRole role, int layer = 0);
  absl::StatusOr<std::unique_ptr<kernels::Buffer>> Upload(std::span<const float> values);
  absl::Status CheckAllUsed() const;
  void MarkUsed(const SourceTensor& tensor);
  float Progress(int layers_done) const;

  const TensorSource* const source_;  // null: random weights
  const ModelSpec& spec_;
  const Shard shard_;
  kernels::Backend* const backend_;
  const LoadProgress& progress_;
  std::set<std::string, std::less<>> used_;
  uint64_t total_bytes_ = 0, used_bytes_ = 0;
  uint64_t num_random_ = 0;  // weights made so far
};

absl::StatusOr<ModelWeights> Loader::Load(int max_model_len) {
  ModelWeights weights;
  RETURN_IF_ERROR(LoadHead(&weights));
  for (int layer = 0; layer < spec_.num_layers; ++layer) {
    RETURN_IF_ERROR(LoadLayer(layer, &weights.layers.emplace_back()));
    RETURN_IF_ERROR(progress_(0.999f * Progress(layer + 1)));
  }
  RETURN_IF_ERROR(CheckAllUsed());
  ASSIGN_OR_RETURN(weights.cos_sin, Upload(RopeTable(spec_.rope, max_model_len)));
  RETURN_IF_ERROR(progress_(1.0f));
  return weights;
}

absl::Status Loader::LoadHead(ModelWeights* weights) {
  ASSIGN_OR_RETURN(weights->output_norm, Norm(TensorRole::kOutputNorm));
  ASSIGN_OR_RETURN(const WeightSegment table,
                   Matrix(TensorRole::kEmbedding, 0, spec_.vocab_size, spec_.hidden));
  const int64_t share = spec_.vocab_size / shard_.num_ranks;
  if (spec_.tied_head) {
    ASSIGN_OR_RETURN(weights->embedding, Pack({&table, 1}, WeightUse::kEmbeddingAndLinear));
    // A backend may be able to cut its layout at some rows only: then the head is packed apart.
    auto view = backend_->WeightRows(*weights->embedding, shard_.rank * share, share);
    if (view.ok()) {
      weights->head = *std::move(view);
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(const WeightSegment head,
                     RowShare(TensorRole::kEmbedding, 0, spec_.vocab_size, spec_.hidden));
    ASSIGN_OR_RETURN(weights->head, Pack({&head, 1}));
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(weights->embedding, Pack({&table, 1}, WeightUse::kEmbedding));
  ASSIGN_OR_RETURN(const WeightSegment head,
                   RowShare(TensorRole::kHead, 0, spec_.vocab_size, spec_.hidden));
  ASSIGN_OR_RETURN(weights->head, Pack({&head, 1}));
  return absl::OkStatus();
}

absl::Status Loader::LoadLayer(int layer, LayerWeights* weights) {
  const int64_t hidden = spec_.hidden, width = spec_.mlp_width;
  const int64_t q_rows = int64_t{spec_.num_heads} * spec_.head_size;
  const int64_t kv_rows = int64_t{spec_.num_kv_heads} * spec_.head_size;
  ASSIGN_OR_RETURN(weights->attention_norm, Norm(TensorRole::kAttentionNorm, layer));
  ASSIGN_OR_RETURN(weights->mlp_norm, Norm(TensorRole::kMlpNorm, layer));
  std::array<WeightSegment, 3> qkv;
  ASSIGN_OR_RETURN(qkv[0], RowShare(TensorRole::kQ, layer, q_rows, hidden));
  ASSIGN_OR_RETURN(qkv[1], RowShare(TensorRole::kK, layer, kv_rows, hidden));
  ASSIGN_OR_RETURN(qkv[2], RowShare(TensorRole::kV, layer, kv_rows, hidden));
  ASSIGN_OR_RETURN(weights->qkv, Pack(qkv));
  if (spec_.qkv_bias) {
    ASSIGN_OR_RETURN(weights->qkv_bias, QkvBias(layer));
  }
  ASSIGN_OR_RETURN(const WeightSegment o, ColumnShare(TensorRole::kO, layer, hidden, q_rows));
  ASSIGN_OR_RETURN(weights->o, Pack({&o, 1}, WeightUse::kCoarseLinear));
  if (spec_.o_bias) {
    ASSIGN_OR_RETURN(const std::vector<float> bias, Values(TensorRole::kOBias, layer, hidden, 0));
    if (shard_.rank == 0) {
      ASSIGN_OR_RETURN(weights->o_bias, Upload(bias));
    }
  }
  std::array<WeightSegment, 2> gate_up;
  ASSIGN_OR_RETURN(gate_up[0], RowShare(TensorRole::kGate, layer, width, hidden));
  ASSIGN_OR_RETURN(gate_up[1], RowShare(TensorRole::kUp, layer, width, hidden));
  ASSIGN_OR_RETURN(weights->gate_up, Pack(gate_up));
  ASSIGN_OR_RETURN(const WeightSegment down, ColumnShare(TensorRole::kDown, layer, hidden, width));
  ASSIGN_OR_RETURN(weights->down, Pack({&down, 1}, WeightUse::kCoarseLinear));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<kernels::Buffer>> Loader::QkvBias(int layer) {
  std::vector<float> share;
  for (const auto& [role, heads] : {std::pair{TensorRole::kQBias, spec_.num_heads},
                                    std::pair{TensorRole::kKBias, spec_.num_kv_heads},
                                    std::pair{TensorRole::kVBias, spec_.num_kv_heads}}) {
    ASSIGN_OR_RETURN(const std::vector<float> whole,
                     Values(role, layer, int64_t{heads} * spec_.head_size, 0));
    const ptrdiff_t size = static_cast<ptrdiff_t>(whole.size()) / shard_.num_ranks;
    share.insert(share.end(), whole.begin() + shard_.rank * size,
                 whole.begin() + (shard_.rank + 1) * size);
  }
  return Upload(share);
}

absl::StatusOr<WeightSegment> Loader::Matrix(TensorRole role, int layer, int64_t rows,
                                             int64_t cols) {
  WeightSegment segment{.format = spec_.random_format, .rows = rows, .cols = cols};
  if (source_ == nullptr) return segment;
  ASSIGN_OR_RETURN(const SourceTensor* tensor,
                   source_->Get(source_->Name(role, layer),
                                {static_cast<uint64_t>(rows), static_cast<uint64_t>(cols)}));
  if (!tensor->format.has_value()) {
    return InvalidArgument("{}: tensor {} is stored as {}, which is no type of a weight",
                           source_->path(), tensor->name, tensor->type);
  }
  segment.format = *tensor->format;
  segment.data = tensor->data;
  segment.row_bytes = static_cast<int64_t>(tensor->num_bytes) / rows;
  MarkUsed(*tensor);
  return segment;
}

absl::StatusOr<WeightSegment> Loader::RowShare(TensorRole role, int layer, int64_t rows,
                                               int64_t cols) {
  ASSIGN_OR_RETURN(WeightSegment segment, Matrix(role, layer, rows, cols));
  segment.rows = rows / shard_.num_ranks;
  if (segment.data != nullptr) segment.data += shard_.rank * segment.rows * segment.row_bytes;
  return segment;
}

absl::StatusOr<WeightSegment> Loader::ColumnShare(TensorRole role, int layer, int64_t rows,
                                                  int64_t cols) {
  ASSIGN_OR_RETURN(WeightSegment segment, Matrix(role, layer, rows, cols));
  // CheckShard saw to it that a share is a whole number of blocks.
  segment.cols = cols / shard_.num_ranks;
  if (segment.data != nullptr) {
    segment.data += shard_.rank * (segment.row_bytes / shard_.num_ranks);
  }
  return segment;
}

absl::StatusOr<std::unique_ptr<kernels::Weight>> Loader::Pack(
    std::span<const WeightSegment> segments, WeightUse use) {
  if (source_ != nullptr) return backend_->LoadWeight(segments, use);
  int64_t rows = 0;
  for (const WeightSegment& segment : segments) rows += segment.rows;
  // Ranks differ in their shares, but not in the embedding, which all hold whole.
  const bool whole = use == WeightUse::kEmbedding || use == WeightUse::kEmbeddingAndLinear;
  const uint64_t seed = num_random_++ * shm::kMaxRanks + (whole ? 0 : shard_.rank);
  return backend_->RandomWeight(spec_.random_format, rows, segments[0].cols, use, seed);
}

absl::StatusOr<std::vector<float>> Loader::Values(TensorRole role, int layer, int64_t size,
                                                  float otherwise) {
  if (source_ == nullptr) return std::vector<float>(size, otherwise);
  const std::string name = source_->Name(role, layer);
  ASSIGN_OR_RETURN(std::vector<float> values, source_->GetVector(name, size));
  MarkUsed(*source_->Find(name));
  return values;
}

absl::StatusOr<std::unique_ptr<kernels::Buffer>> Loader::Norm(TensorRole role, int layer) {
  ASSIGN_OR_RETURN(const std::vector<float> values, Values(role, layer, spec_.hidden, 1));
  return Upload(values);
}

// Writes device memory directly, as the CPU backend allows; a device with its own memory will bring
// a copy op.
absl::StatusOr<std::unique_ptr<kernels::Buffer>> Loader::Upload(std::span<const float> values) {
  ASSIGN_OR_RETURN(std::unique_ptr<kernels::Buffer> buffer,
                   backend_->Allocate(values.size_bytes()));
  RETURN_IF_ERROR(backend_->Upload(*buffer, values.data(), values.size_bytes()));
  return buffer;
}

void Loader::MarkUsed(const SourceTensor& tensor) {
  if (used_.insert(tensor.name).second) used_bytes_ += tensor.num_bytes;
}

float Loader::Progress(int layers_done) const {
  if (source_ == nullptr) {
    return static_cast<float>(layers_done) / static_cast<float>(spec_.num_layers);
  }
  return static_cast<float>(used_bytes_) / static_cast<float>(total_bytes_);
}

absl::Status Loader::CheckAllUsed() const {
  if (source_ == nullptr) return absl::OkStatus();
  for (const SourceTensor& tensor : source_->tensors()) {
    if (used_.contains(tensor.name) || source_->MayIgnore(tensor.name)) continue;
    return InvalidArgument(
        "{}: tensor {} is not part of a model of architecture {} as Penstock knows it: leaving it "
        "out would give wrong answers",
        source_->path(), tensor.name, spec_.architecture);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckShard(const TensorSource* source, const ModelSpec& spec, const Shard& shard) {
  const int64_t o_block = LargestBlock(source, spec, TensorRole::kO);
  const int64_t down_block = LargestBlock(source, spec, TensorRole::kDown);
  const std::string problem = ShardProblem(spec, o_block, down_block, shard.num_ranks);
  if (problem.empty()) return absl::OkStatus();
  std::string sizes;
  for (int n = 1; n <= shm::kMaxRanks; ++n) {
    if (!ShardProblem(spec, o_block, down_block, n).empty()) continue;
    if (!sizes.empty()) sizes += ", ";
    sizes += std::to_string(n);
  }
  return InvalidArgument(
      "--tensor-parallel-size {} does not fit this model: {}; sizes that work: {}", shard.num_ranks,
      problem, sizes);
}

absl::StatusOr<ModelWeights> LoadWeights(const TensorSource* source, const ModelSpec& spec,
                                         const Shard& shard, int max_model_len,
                                         kernels::Backend* backend, const LoadProgress& progress) {
  RETURN_IF_ERROR(CheckShard(source, spec, shard));
  return Loader(source, spec, shard, backend, progress).Load(max_model_len);
}

}  // namespace penstock::worker
