#include "worker/weights/tensor_source.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "common/status.h"
#include "kernels/cpu/dequantize.h"

namespace penstock::worker {
namespace {

using kernels::WeightFormat;

// One row a role, a column a format; the layer's number goes to the braces.
struct RoleNames {
  TensorRole role;
  std::string_view gguf;
  std::string_view hugging_face;
};

constexpr RoleNames kRoles[] = {
    {TensorRole::kEmbedding, "token_embd.weight", "model.embed_tokens.weight"},
    {TensorRole::kOutputNorm, "output_norm.weight", "model.norm.weight"},
    {TensorRole::kHead, "output.weight", "lm_head.weight"},
    {TensorRole::kAttentionNorm, "blk.{}.attn_norm.weight",
     "model.layers.{}.input_layernorm.weight"},
    {TensorRole::kQ, "blk.{}.attn_q.weight", "model.layers.{}.self_attn.q_proj.weight"},
    {TensorRole::kK, "blk.{}.attn_k.weight", "model.layers.{}.self_attn.k_proj.weight"},
    {TensorRole::kV, "blk.{}.attn_v.weight", "model.layers.{}.self_attn.v_proj.weight"},
    {TensorRole::kO, "blk.{}.attn_output.weight", "model.layers.{}.self_attn.o_proj.weight"},
    {TensorRole::kQBias, "blk.{}.attn_q.bias", "model.layers.{}.self_attn.q_proj.bias"},
    {TensorRole::kKBias, "blk.{}.attn_k.bias", "model.layers.{}.self_attn.k_proj.bias"},
    {TensorRole::kVBias, "blk.{}.attn_v.bias", "model.layers.{}.self_attn.v_proj.bias"},
    {TensorRole::kOBias, "blk.{}.attn_output.bias", "model.layers.{}.self_attn.o_proj.bias"},
    {TensorRole::kMlpNorm, "blk.{}.ffn_norm.weight",
     "model.layers.{}.post_attention_layernorm.weight"},
    {TensorRole::kGate, "blk.{}.ffn_gate.weight", "model.layers.{}.mlp.gate_proj.weight"},
    {TensorRole::kUp, "blk.{}.ffn_up.weight", "model.layers.{}.mlp.up_proj.weight"},
    {TensorRole::kDown, "blk.{}.ffn_down.weight", "model.layers.{}.mlp.down_proj.weight"},
};

std::optional<WeightFormat> FormatOf(GgmlType type) {
  constexpr std::pair<GgmlType, WeightFormat> kFormats[] = {
      {GgmlType::kF32, WeightFormat::kF32},   {GgmlType::kF16, WeightFormat::kF16},
      {GgmlType::kBF16, WeightFormat::kBF16}, {GgmlType::kQ4_0, WeightFormat::kQ4_0},
      {GgmlType::kQ4_1, WeightFormat::kQ4_1}, {GgmlType::kQ5_0, WeightFormat::kQ5_0},
      {GgmlType::kQ5_1, WeightFormat::kQ5_1}, {GgmlType::kQ8_0, WeightFormat::kQ8_0},
      {GgmlType::kQ4_K, WeightFormat::kQ4_K}, {GgmlType::kQ5_K, WeightFormat::kQ5_K},
      {GgmlType::kQ6_K, WeightFormat::kQ6_K},
  };
  for (const auto& [stored, format] : kFormats) {
    if (stored == type) return format;
  }
  return std::nullopt;
}

std::optional<WeightFormat> FormatOf(std::string_view dtype) {
  if (dtype == "F32") return WeightFormat::kF32;
  if (dtype == "F16") return WeightFormat::kF16;
  if (dtype == "BF16") return WeightFormat::kBF16;
  return std::nullopt;
}

}  // namespace

TensorSource::TensorSource(const std::shared_ptr<const GgufFile>& file)
    : format_(Format::kGguf), files_(file), path_(file->path()) {
  for (const GgufTensor& tensor : file->tensors()) {
    const GgmlTypeInfo& type = GetGgmlTypeInfo(tensor.type);
    Add({.name = std::string(tensor.name),
         .type = type.name,
         .format = FormatOf(tensor.type),
         .block_size = type.block_size,
         .shape = {tensor.dims.rbegin(), tensor.dims.rend()},
         .data = file->TensorData(tensor),
         .num_bytes = tensor.num_bytes});
  }
}

TensorSource::TensorSource(const std::shared_ptr<const SafetensorsCheckpoint>& checkpoint)
    : format_(Format::kSafetensors), files_(checkpoint), path_(checkpoint->dir()) {
  for (const SafetensorsTensor& tensor : checkpoint->tensors()) {
    Add({.name = tensor.name,
         .type = tensor.dtype,
         .format = FormatOf(tensor.dtype),
         .shape = tensor.shape,
         .data = tensor.data,
         .num_bytes = tensor.num_bytes});
  }
}

void TensorSource::Add(SourceTensor tensor) {
  index_.emplace(tensor.name, tensors_.size());
  tensors_.push_back(std::move(tensor));
}

std::string TensorSource::Name(TensorRole role, int layer) const {
  const auto* row = std::find_if(std::begin(kRoles), std::end(kRoles),
                                 [role](const RoleNames& names) { return names.role == role; });
  return fmt::format(fmt::runtime(format_ == Format::kGguf ? row->gguf : row->hugging_face), layer);
}

const SourceTensor* TensorSource::Find(std::string_view name) const {
  const auto found = index_.find(std::string(name));
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

absl::StatusOr<const SourceTensor*> TensorSource::Get(const std::string& name,
                                                      const std::vector<uint64_t>& shape) const {
  const SourceTensor* tensor = Find(name);
  if (tensor == nullptr) {
    return InvalidArgument(
        "{}: tensor \"{}\" is missing: the model is damaged or of a kind Penstock doesn't know",
        path_, name);
  }
  if (tensor->shape == shape) return tensor;
  return InvalidArgument("{}: tensor {} is {}, but the model's {} asks for {}", path_, name,
                         ShapeName(tensor->shape),
                         format_ == Format::kGguf ? "metadata" : "config.json", ShapeName(shape));
}

absl::StatusOr<std::vector<float>> TensorSource::GetVector(const std::string& name,
                                                           int64_t size) const {
  ASSIGN_OR_RETURN(const SourceTensor* tensor, Get(name, {static_cast<uint64_t>(size)}));
  if (!tensor->format.has_value() || tensor->block_size != 1) {
    return InvalidArgument(
        "{}: tensor {} is stored as {}: norms, biases and factors must be F32, F16 or BF16", path_,
        name, tensor->type);
  }
  std::vector<float> values(size);
  kernels::cpu::Dequantize(*tensor->format, tensor->data, size, values.data());
  return values;
}

bool TensorSource::MayIgnore(std::string_view name) const {
  // Read by the spec.
  if (format_ == Format::kGguf) return name == "rope_freqs.weight";
  // Older checkpoints store what config.json says anyway; a tied head may be stored again.
  return name.ends_with(".rotary_emb.inv_freq") || name == Name(TensorRole::kHead);
}

std::string TensorSource::ShapeName(const std::vector<uint64_t>& shape) const {
  std::vector<uint64_t> sizes = shape;
  if (format_ == Format::kGguf) std::reverse(sizes.begin(), sizes.end());
  return fmt::format("[{}]", fmt::join(sizes, ", "));
}

}  // namespace penstock::worker
