#include "worker/model/spec.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <string_view>

#include "common/status.h"

namespace penstock::worker {
namespace {

// One row a family. Everything else comes from the file's metadata.
struct Family {
  std::string_view architecture;  // general.architecture
  bool rope_interleaved;          // the converter left q and k in the order of adjacent pairs
};

constexpr Family kFamilies[] = {
    {"llama", true},
};

std::string FamilyNames() {
  std::string names;
  for (const Family& family : kFamilies) {
    if (!names.empty()) names += ", ";
    names += family.architecture;
  }
  return names;
}

absl::StatusOr<const Family*> FindFamily(const GgufFile& file) {
  ASSIGN_OR_RETURN(const std::string_view name, file.GetString("general.architecture"));
  for (const Family& family : kFamilies) {
    if (family.architecture == name) return &family;
  }
  return Unimplemented("{}: architecture \"{}\" is not supported; supported: {}", file.path(), name,
                       FamilyNames());
}

// Reads <architecture>.<key>, within sane bounds so that products of sizes cannot overflow.
class Keys {
 public:
  Keys(const GgufFile& file, std::string_view architecture)
      : file_(file), prefix_(fmt::format("{}.", architecture)) {}

  absl::StatusOr<int> Int(std::string_view key) const {
    ASSIGN_OR_RETURN(const uint32_t value, file_.GetU32(Name(key)));
    return Checked(key, value);
  }
  absl::StatusOr<int> IntOr(std::string_view key, int fallback) const {
    ASSIGN_OR_RETURN(const std::optional<uint32_t> value, file_.FindU32(Name(key)));
    if (!value.has_value()) return fallback;
    return Checked(key, *value);
  }
  absl::StatusOr<float> Float(std::string_view key) const { return file_.GetF32(Name(key)); }
  absl::StatusOr<float> FloatOr(std::string_view key, float fallback) const {
    ASSIGN_OR_RETURN(const std::optional<float> value, file_.FindF32(Name(key)));
    return value.value_or(fallback);
  }
  absl::StatusOr<std::string_view> StringOr(std::string_view key, std::string_view fallback) const {
    ASSIGN_OR_RETURN(const std::optional<std::string_view> value, file_.FindString(Name(key)));
    return value.value_or(fallback);
  }
  // An error unless the key is absent or 0: what it would switch on is not there yet.
  absl::Status RefuseNonZero(std::string_view key, std::string_view what) const {
    ASSIGN_OR_RETURN(const std::optional<uint32_t> value, file_.FindU32(Name(key)));
    if (value.value_or(0) == 0) return absl::OkStatus();
    return Unimplemented("{}: {}{} is {}: {} not supported yet", file_.path(), prefix_, key, *value,
                         what);
  }

 private:
  std::string Name(std::string_view key) const { return fmt::format("{}{}", prefix_, key); }

  absl::StatusOr<int> Checked(std::string_view key, uint32_t value) const {
    if (value >= 1 && value <= (1u << 24)) return static_cast<int>(value);
    return InvalidArgument("{}: {}{} is {}, outside 1..{}: the file is damaged", file_.path(),
                           prefix_, key, value, 1u << 24);
  }

  const GgufFile& file_;
  const std::string prefix_;
};

absl::StatusOr<std::vector<float>> ReadRopeFactors(const GgufFile& file, int size) {
  ASSIGN_OR_RETURN(const GgufTensor* tensor, file.GetTensor("rope_freqs.weight"));
  const bool fits = tensor->type == GgmlType::kF32 && tensor->dims.size() == 1 &&
                    tensor->dims[0] == static_cast<uint64_t>(size);
  if (!fits) {
    return InvalidArgument("{}: tensor rope_freqs.weight must be {} numbers in F32", file.path(),
                           size);
  }
  std::vector<float> factors(size);
  std::memcpy(factors.data(), file.TensorData(*tensor), size * sizeof(float));
  return factors;
}

absl::Status ReadRope(const GgufFile& file, const Keys& keys, int head_size, RopeSpec* rope) {
  ASSIGN_OR_RETURN(rope->theta, keys.FloatOr("rope.freq_base", 10000.0f));
  ASSIGN_OR_RETURN(rope->rotary_size, keys.IntOr("rope.dimension_count", head_size));
  if (rope->rotary_size > head_size || rope->rotary_size % 2 != 0) {
    return InvalidArgument("{}: {} rotary elements do not fit heads of {}: the file is damaged",
                           file.path(), rope->rotary_size, head_size);
  }
  ASSIGN_OR_RETURN(const std::string_view scaling, keys.StringOr("rope.scaling.type", "none"));
  if (scaling == "linear") {
    ASSIGN_OR_RETURN(rope->linear_factor, keys.Float("rope.scaling.factor"));
  } else if (scaling != "none") {
    return Unimplemented(
        "{}: rope scaling \"{}\" is not supported; supported: none, linear, and the factors of a "
        "rope_freqs.weight tensor",
        file.path(), scaling);
  }
  if (file.FindTensor("rope_freqs.weight") != nullptr) {
    ASSIGN_OR_RETURN(rope->freq_factor, ReadRopeFactors(file, rope->rotary_size / 2));
  }
  bool positive = rope->theta > 0 && rope->linear_factor > 0;
  for (const float factor : rope->freq_factor) positive = positive && factor > 0;
  if (positive) return absl::OkStatus();
  return InvalidArgument("{}: rope base and factors must be above 0: the file is damaged",
                         file.path());
}

// The vocabulary is as large as the embedding table; metadata, where present, must agree.
absl::StatusOr<int> ReadVocabSize(const GgufFile& file, const Keys& keys) {
  ASSIGN_OR_RETURN(const GgufTensor* table, file.GetTensor("token_embd.weight"));
  if (table->dims.size() != 2 || table->dims[1] > (1u << 24)) {
    return InvalidArgument("{}: token_embd.weight is not a matrix: the file is damaged",
                           file.path());
  }
  const int rows = static_cast<int>(table->dims[1]);
  ASSIGN_OR_RETURN(const int vocab_size, keys.IntOr("vocab_size", rows));
  if (vocab_size == rows) return rows;
  return InvalidArgument("{}: vocab_size is {} but token_embd.weight has {} rows", file.path(),
                         vocab_size, rows);
}

}  // namespace

absl::StatusOr<ModelSpec> ReadModelSpec(const GgufFile& file) {
  ASSIGN_OR_RETURN(const Family* family, FindFamily(file));
  const Keys keys(file, family->architecture);
  RETURN_IF_ERROR(keys.RefuseNonZero("expert_count", "mixtures of experts are"));
  RETURN_IF_ERROR(keys.RefuseNonZero("attention.sliding_window", "sliding windows are"));
  ModelSpec spec;
  spec.architecture = family->architecture;
  ASSIGN_OR_RETURN(spec.num_layers, keys.Int("block_count"));
  ASSIGN_OR_RETURN(spec.hidden, keys.Int("embedding_length"));
  ASSIGN_OR_RETURN(spec.mlp_width, keys.Int("feed_forward_length"));
  ASSIGN_OR_RETURN(spec.max_positions, keys.Int("context_length"));
  ASSIGN_OR_RETURN(spec.num_heads, keys.Int("attention.head_count"));
  ASSIGN_OR_RETURN(spec.num_kv_heads, keys.IntOr("attention.head_count_kv", spec.num_heads));
  ASSIGN_OR_RETURN(spec.norm_epsilon, keys.Float("attention.layer_norm_rms_epsilon"));
  ASSIGN_OR_RETURN(spec.head_size,
                   keys.IntOr("attention.key_length", std::max(1, spec.hidden / spec.num_heads)));
  ASSIGN_OR_RETURN(const int value_size, keys.IntOr("attention.value_length", spec.head_size));
  if (spec.num_heads % spec.num_kv_heads != 0) {
    return InvalidArgument("{}: {} heads cannot share {} KV heads evenly: the file is damaged",
                           file.path(), spec.num_heads, spec.num_kv_heads);
  }
  if (value_size != spec.head_size) {
    return Unimplemented("{}: keys of {} and values of {} elements: they must be of one size",
                         file.path(), spec.head_size, value_size);
  }
  ASSIGN_OR_RETURN(spec.vocab_size, ReadVocabSize(file, keys));
  spec.attention_scale = 1.0f / std::sqrt(static_cast<float>(spec.head_size));
  spec.tied_head = file.FindTensor("output.weight") == nullptr;
  spec.qkv_bias = file.FindTensor("blk.0.attn_q.bias") != nullptr;
  spec.o_bias = file.FindTensor("blk.0.attn_output.bias") != nullptr;
  spec.rope.interleaved = family->rope_interleaved;
  RETURN_IF_ERROR(ReadRope(file, keys, spec.head_size, &spec.rope));
  return spec;
}

ModelSpec NullModelSpec() {
  ModelSpec spec;
  spec.architecture = "null";
  spec.num_layers = 1;
  spec.hidden = 64;
  spec.num_heads = spec.num_kv_heads = 64;
  spec.head_size = 2;
  spec.mlp_width = 64;
  spec.vocab_size = 49152;
  spec.max_positions = 8192;
  spec.norm_epsilon = 1e-5f;
  spec.attention_scale = 1.0f;
  spec.tied_head = true;
  spec.rope.rotary_size = 2;
  return spec;
}

std::vector<float> RopeTable(const RopeSpec& rope, int num_positions) {
  const int half = rope.rotary_size / 2;
  std::vector<double> frequency(half);
  for (int i = 0; i < half; ++i) {
    frequency[i] =
        std::pow(static_cast<double>(rope.theta), -2.0 * i / rope.rotary_size) / rope.linear_factor;
    if (!rope.freq_factor.empty()) frequency[i] /= rope.freq_factor[i];
  }
  std::vector<float> table(static_cast<size_t>(num_positions) * rope.rotary_size);
  for (int position = 0; position < num_positions; ++position) {
    float* row = table.data() + static_cast<size_t>(position) * rope.rotary_size;
    for (int i = 0; i < half; ++i) {
      row[i] = static_cast<float>(std::cos(position * frequency[i]));
      row[half + i] = static_cast<float>(std::sin(position * frequency[i]));
    }
  }
  return table;
}

}  // namespace penstock::worker
