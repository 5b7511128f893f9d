#include "worker/weights/loader.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <optional>
#include <set>
#include <string>

#include "common/shm/layout.h"
#include "common/status.h"
#include "worker/weights/vectors.h"

namespace penstock::worker {
namespace {

using kernels::WeightFormat;
using kernels::WeightSegment;
using kernels::WeightUse;

absl::StatusOr<WeightFormat> FormatOf(const GgufFile& file, const GgufTensor& tensor) {
  switch (tensor.type) {
    case GgmlType::kF32:
      return WeightFormat::kF32;
    case GgmlType::kF16:
      return WeightFormat::kF16;
    case GgmlType::kBF16:
      return WeightFormat::kBF16;
    case GgmlType::kQ4_0:
      return WeightFormat::kQ4_0;
    case GgmlType::kQ4_1:
      return WeightFormat::kQ4_1;
    case GgmlType::kQ5_0:
      return WeightFormat::kQ5_0;
    case GgmlType::kQ5_1:
      return WeightFormat::kQ5_1;
    case GgmlType::kQ8_0:
      return WeightFormat::kQ8_0;
    case GgmlType::kQ4_K:
      return WeightFormat::kQ4_K;
    case GgmlType::kQ5_K:
      return WeightFormat::kQ5_K;
    case GgmlType::kQ6_K:
      return WeightFormat::kQ6_K;
    default:
      return InvalidArgument("{}: tensor {} is stored as {}, which is no type of a weight",
                             file.path(), tensor.name, GetGgmlTypeInfo(tensor.type).name);
  }
}

std::string LayerName(int layer, std::string_view role) {
  return fmt::format("blk.{}.{}", layer, role);
}

// Largest quantisation block of a tensor over all layers; 1 where it is absent (LoadWeights says
// so).
int64_t LargestBlock(const GgufFile& file, const ModelSpec& spec, std::string_view role) {
  int64_t block = 1;
  for (int layer = 0; layer < spec.num_layers; ++layer) {
    const GgufTensor* tensor = file.FindTensor(LayerName(layer, role));
    if (tensor != nullptr) {
      block = std::max<int64_t>(block, GetGgmlTypeInfo(tensor->type).block_size);
    }
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

// Loads tensors by role, one after the other, and keeps account of what has been used.
class Loader {
 public:
  Loader(const GgufFile& file, const ModelSpec& spec, const Shard& shard, kernels::Backend* backend,
         const LoadProgress& progress)
      : file_(file), spec_(spec), shard_(shard), backend_(backend), progress_(progress) {
    for (const GgufTensor& tensor : file.tensors()) total_bytes_ += tensor.num_bytes;
  }

  absl::StatusOr<ModelWeights> Load(int max_model_len);

 private:
  absl::Status LoadHead(ModelWeights* weights);
  absl::Status LoadLayer(int layer, LayerWeights* weights);
  absl::StatusOr<std::unique_ptr<kernels::Buffer>> QkvBias(int layer);
  // The tensor `name` if it is a [rows, cols] matrix of a weight's type; marks it used.
  absl::StatusOr<WeightSegment> Matrix(const std::string& name, int64_t rows, int64_t cols);
  // This rank's rows or columns of it.
  absl::StatusOr<WeightSegment> RowShare(const std::string& name, int64_t rows, int64_t cols);
  absl::StatusOr<WeightSegment> ColumnShare(const std::string& name, int64_t rows, int64_t cols);
  absl::StatusOr<std::unique_ptr<kernels::Weight>> Pack(std::span<const WeightSegment> segments,
                                                        WeightUse use = WeightUse::kLinear);
  absl::StatusOr<std::unique_ptr<kernels::Buffer>> Vector(const std::string& name, int64_t size);
  absl::StatusOr<std::unique_ptr<kernels::Buffer>> Upload(std::span<const float> values);
  absl::Status CheckAllUsed() const;
  void MarkUsed(const std::string& name);

  const GgufFile& file_;
  const ModelSpec& spec_;
  const Shard shard_;
  kernels::Backend* const backend_;
  const LoadProgress& progress_;
  std::set<std::string, std::less<>> used_;
  uint64_t total_bytes_ = 0, used_bytes_ = 0;
};

absl::StatusOr<ModelWeights> Loader::Load(int max_model_len) {
  ModelWeights weights;
  RETURN_IF_ERROR(LoadHead(&weights));
  for (int layer = 0; layer < spec_.num_layers; ++layer) {
    RETURN_IF_ERROR(LoadLayer(layer, &weights.layers.emplace_back()));
    RETURN_IF_ERROR(
        progress_(0.999f * static_cast<float>(used_bytes_) / static_cast<float>(total_bytes_)));
  }
  RETURN_IF_ERROR(CheckAllUsed());
  ASSIGN_OR_RETURN(weights.cos_sin, Upload(RopeTable(spec_.rope, max_model_len)));
  RETURN_IF_ERROR(progress_(1.0f));
  return weights;
}

absl::Status Loader::LoadHead(ModelWeights* weights) {
  ASSIGN_OR_RETURN(weights->output_norm, Vector("output_norm.weight", spec_.hidden));
  ASSIGN_OR_RETURN(const WeightSegment table,
                   Matrix("token_embd.weight", spec_.vocab_size, spec_.hidden));
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
                     RowShare("token_embd.weight", spec_.vocab_size, spec_.hidden));
    ASSIGN_OR_RETURN(weights->head, Pack({&head, 1}));
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(weights->embedding, Pack({&table, 1}, WeightUse::kEmbedding));
  ASSIGN_OR_RETURN(const WeightSegment head,
                   RowShare("output.weight", spec_.vocab_size, spec_.hidden));
  ASSIGN_OR_RETURN(weights->head, Pack({&head, 1}));
  return absl::OkStatus();
}

absl::Status Loader::LoadLayer(int layer, LayerWeights* weights) {
  const int64_t hidden = spec_.hidden, width = spec_.mlp_width;
  const int64_t q_rows = int64_t{spec_.num_heads} * spec_.head_size;
  const int64_t kv_rows = int64_t{spec_.num_kv_heads} * spec_.head_size;
  auto name = [layer](std::string_view role) { return LayerName(layer, role); };
  ASSIGN_OR_RETURN(weights->attention_norm, Vector(name("attn_norm.weight"), hidden));
  ASSIGN_OR_RETURN(weights->mlp_norm, Vector(name("ffn_norm.weight"), hidden));
  std::array<WeightSegment, 3> qkv;
  ASSIGN_OR_RETURN(qkv[0], RowShare(name("attn_q.weight"), q_rows, hidden));
  ASSIGN_OR_RETURN(qkv[1], RowShare(name("attn_k.weight"), kv_rows, hidden));
  ASSIGN_OR_RETURN(qkv[2], RowShare(name("attn_v.weight"), kv_rows, hidden));
  ASSIGN_OR_RETURN(weights->qkv, Pack(qkv));
  ASSIGN_OR_RETURN(weights->qkv_bias, QkvBias(layer));
  ASSIGN_OR_RETURN(const WeightSegment o, ColumnShare(name("attn_output.weight"), hidden, q_rows));
  ASSIGN_OR_RETURN(weights->o, Pack({&o, 1}, WeightUse::kCoarseLinear));
  if (file_.FindTensor(name("attn_output.bias")) != nullptr) {
    ASSIGN_OR_RETURN(weights->o_bias, Vector(name("attn_output.bias"), hidden));
    if (shard_.rank != 0) weights->o_bias = nullptr;
  }
  std::array<WeightSegment, 2> gate_up;
  ASSIGN_OR_RETURN(gate_up[0], RowShare(name("ffn_gate.weight"), width, hidden));
  ASSIGN_OR_RETURN(gate_up[1], RowShare(name("ffn_up.weight"), width, hidden));
  ASSIGN_OR_RETURN(weights->gate_up, Pack(gate_up));
  ASSIGN_OR_RETURN(const WeightSegment down, ColumnShare(name("ffn_down.weight"), hidden, width));
  ASSIGN_OR_RETURN(weights->down, Pack({&down, 1}, WeightUse::kCoarseLinear));
  return absl::OkStatus();
}

// q, k and v have biases together or not at all.
absl::StatusOr<std::unique_ptr<kernels::Buffer>> Loader::QkvBias(int layer) {
  if (file_.FindTensor(LayerName(layer, "attn_q.bias")) == nullptr) return nullptr;
  std::vector<float> share;
  for (const auto& [role, heads] :
       {std::pair{"attn_q.bias", spec_.num_heads}, std::pair{"attn_k.bias", spec_.num_kv_heads},
        std::pair{"attn_v.bias", spec_.num_kv_heads}}) {
    const std::string name = LayerName(layer, role);
    ASSIGN_OR_RETURN(const std::vector<float> whole,
                     ReadVector(file_, name, int64_t{heads} * spec_.head_size));
    MarkUsed(name);
    const ptrdiff_t size = static_cast<ptrdiff_t>(whole.size()) / shard_.num_ranks;
    share.insert(share.end(), whole.begin() + shard_.rank * size,
                 whole.begin() + (shard_.rank + 1) * size);
  }
  return Upload(share);
}

absl::StatusOr<WeightSegment> Loader::Matrix(const std::string& name, int64_t rows, int64_t cols) {
  ASSIGN_OR_RETURN(const GgufTensor* tensor, file_.GetTensor(name));
  const bool fits = tensor->dims.size() == 2 && tensor->dims[0] == static_cast<uint64_t>(cols) &&
                    tensor->dims[1] == static_cast<uint64_t>(rows);
  if (!fits) {
    return InvalidArgument("{}: tensor {} is {}, but the model's metadata ask for [{}, {}]",
                           file_.path(), name, ShapeName(*tensor), cols, rows);
  }
  WeightSegment segment;
  ASSIGN_OR_RETURN(segment.format, FormatOf(file_, *tensor));
  segment.data = file_.TensorData(*tensor);
  segment.rows = rows;
  segment.cols = cols;
  segment.row_bytes = static_cast<int64_t>(tensor->num_bytes) / rows;
  MarkUsed(name);
  return segment;
}

absl::StatusOr<WeightSegment> Loader::RowShare(const std::string& name, int64_t rows,
                                               int64_t cols) {
  ASSIGN_OR_RETURN(WeightSegment segment, Matrix(name, rows, cols));
  segment.rows = rows / shard_.num_ranks;
  segment.data += shard_.rank * segment.rows * segment.row_bytes;
  return segment;
}

absl::StatusOr<WeightSegment> Loader::ColumnShare(const std::string& name, int64_t rows,
                                                  int64_t cols) {
  ASSIGN_OR_RETURN(WeightSegment segment, Matrix(name, rows, cols));
  // CheckShard saw to it that a share is a whole number of blocks.
  segment.cols = cols / shard_.num_ranks;
  segment.data += shard_.rank * (segment.row_bytes / shard_.num_ranks);
  return segment;
}

absl::StatusOr<std::unique_ptr<kernels::Weight>> Loader::Pack(
    std::span<const WeightSegment> segments, WeightUse use) {
  return backend_->LoadWeight(segments, use);
}

absl::StatusOr<std::unique_ptr<kernels::Buffer>> Loader::Vector(const std::string& name,
                                                                int64_t size) {
  ASSIGN_OR_RETURN(const std::vector<float> values, ReadVector(file_, name, size));
  MarkUsed(name);
  return Upload(values);
}

// Writes device memory directly, as the CPU backend allows; a device with its own memory will bring
// a copy op.
absl::StatusOr<std::unique_ptr<kernels::Buffer>> Loader::Upload(std::span<const float> values) {
  ASSIGN_OR_RETURN(std::unique_ptr<kernels::Buffer> buffer,
                   backend_->Allocate(values.size_bytes()));
  std::memcpy(buffer->data, values.data(), values.size_bytes());
  return buffer;
}

void Loader::MarkUsed(const std::string& name) {
  if (used_.insert(name).second) used_bytes_ += file_.FindTensor(name)->num_bytes;
}

absl::Status Loader::CheckAllUsed() const {
  for (const GgufTensor& tensor : file_.tensors()) {
    if (used_.contains(tensor.name) || tensor.name == "rope_freqs.weight") continue;
    return InvalidArgument(
        "{}: tensor {} is not part of a model of architecture {} as Penstock knows it: leaving it "
        "out would give wrong answers",
        file_.path(), tensor.name, spec_.architecture);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckShard(const GgufFile* file, const ModelSpec& spec, const Shard& shard) {
  const int64_t o_block = file == nullptr ? 1 : LargestBlock(*file, spec, "attn_output.weight");
  const int64_t down_block = file == nullptr ? 1 : LargestBlock(*file, spec, "ffn_down.weight");
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

absl::StatusOr<ModelWeights> LoadWeights(const GgufFile& file, const ModelSpec& spec,
                                         const Shard& shard, int max_model_len,
                                         kernels::Backend* backend, const LoadProgress& progress) {
  RETURN_IF_ERROR(CheckShard(&file, spec, shard));
  return Loader(file, spec, shard, backend, progress).Load(max_model_len);
}

}  // namespace penstock::worker
