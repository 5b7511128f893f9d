// ModelSpec from a Hugging Face config.json.
#include <cmath>
#include <numbers>
#include <string_view>

#include "common/formats/hf_config.h"
#include "common/status.h"
#include "worker/model/spec.h"

namespace penstock::worker {
namespace {

// One row a family. Everything else comes from config.json.
struct Family {
  std::string_view architecture;
  bool qkv_bias;  // always, whatever attention_bias says
};

constexpr Family kFamilies[] = {
    {"LlamaForCausalLM", false},
    {"MistralForCausalLM", false},
    {"Qwen2ForCausalLM", true},
};

absl::StatusOr<const Family*> FindFamily(const std::string& dir) {
  ASSIGN_OR_RETURN(const std::string name, ReadHfArchitecture(dir));
  std::string names;
  for (const Family& family : kFamilies) {
    if (family.architecture == name) return &family;
    if (!names.empty()) names += ", ";
    names += family.architecture;
  }
  return Unimplemented("{}/config.json: architecture \"{}\" is not supported; supported: {}", dir,
                       name, names);
}

// What config.json may ask for but the decoder can't do.
absl::Status CheckVariant(const HfConfig& config) {
  if (config.quantized) {
    return Unimplemented(
        "{}: quantised checkpoints are not supported yet: use one in F32, F16 or BF16, or a GGUF "
        "file",
        config.path);
  }
  if (config.mlp_bias) {
    return Unimplemented("{}: \"mlp_bias\" is true: biases in the MLP are not supported yet",
                         config.path);
  }
  if (config.sliding_window.has_value()) {
    return Unimplemented("{}: \"sliding_window\" is {}: sliding windows are not supported yet",
                         config.path, *config.sliding_window);
  }
  if (config.hidden_act != "silu" && config.hidden_act != "swish") {
    return Unimplemented("{}: \"hidden_act\" is \"{}\"; supported: silu", config.path,
                         config.hidden_act);
  }
  if (config.rope.partial_rotary_factor != 1) {
    return Unimplemented("{}: \"partial_rotary_factor\" is {}: heads must rotate whole",
                         config.path, config.rope.partial_rotary_factor);
  }
  return absl::OkStatus();
}

// Llama 3.1's scaling as factors the frequencies are divided by: long wavelengths by `factor`,
// short ones not at all, and those between by a blend of both. As transformers' rope type llama3.
std::vector<float> Llama3Factors(const HfRope& rope, int rotary_size) {
  std::vector<float> factors(rotary_size / 2);
  const double context = rope.original_max_position_embeddings;
  for (int i = 0; i < rotary_size / 2; ++i) {
    const double frequency = std::pow(rope.theta, -2.0 * i / rotary_size);
    const double wavelength = 2 * std::numbers::pi / frequency;
    const double smooth = (context / wavelength - rope.low_freq_factor) /
                          (rope.high_freq_factor - rope.low_freq_factor);
    double factor = 1 / ((1 - smooth) / rope.factor + smooth);
    if (wavelength < context / rope.high_freq_factor) factor = 1;
    if (wavelength > context / rope.low_freq_factor) factor = rope.factor;
    factors[i] = static_cast<float>(factor);
  }
  return factors;
}

absl::Status ReadRope(const HfConfig& config, RopeSpec* rope) {
  rope->theta = static_cast<float>(config.rope.theta);
  rope->rotary_size = config.head_dim;
  rope->interleaved = false;
  if (config.rope.type == "linear") {
    rope->linear_factor = static_cast<float>(config.rope.factor);
  } else if (config.rope.type == "llama3") {
    rope->freq_factor = Llama3Factors(config.rope, rope->rotary_size);
  } else if (config.rope.type != "default") {
    return Unimplemented(
        "{}: rope type \"{}\" is not supported; supported: default, linear, llama3", config.path,
        config.rope.type);
  }
  return absl::OkStatus();
}

absl::Status CheckHeads(const HfConfig& config) {
  if (config.num_attention_heads % config.num_key_value_heads != 0) {
    return InvalidArgument("{}: {} heads cannot share {} KV heads evenly", config.path,
                           config.num_attention_heads, config.num_key_value_heads);
  }
  // So that no product of sizes overflows.
  if (int64_t{config.num_attention_heads} * config.head_dim > 1 << 24) {
    return InvalidArgument("{}: {} heads of {} elements are impossibly many", config.path,
                           config.num_attention_heads, config.head_dim);
  }
  if (config.head_dim % 2 != 0) {
    return InvalidArgument("{}: heads of {} elements cannot rotate in pairs", config.path,
                           config.head_dim);
  }
  return absl::OkStatus();
}

absl::StatusOr<kernels::WeightFormat> RandomFormat(const HfConfig& config) {
  if (config.dtype == "float32") return kernels::WeightFormat::kF32;
  if (config.dtype == "float16") return kernels::WeightFormat::kF16;
  if (config.dtype == "bfloat16") return kernels::WeightFormat::kBF16;
  return Unimplemented("{}: dtype \"{}\" is not supported; supported: float32, float16, bfloat16",
                       config.path, config.dtype);
}

}  // namespace

absl::StatusOr<ModelSpec> ReadHfModelSpec(const std::string& dir) {
  // First, since other families name their sizes differently.
  ASSIGN_OR_RETURN(const Family* family, FindFamily(dir));
  ASSIGN_OR_RETURN(const HfConfig config, LoadHfConfig(dir));
  RETURN_IF_ERROR(CheckVariant(config));
  RETURN_IF_ERROR(CheckHeads(config));
  ModelSpec spec;
  spec.architecture = config.architecture;
  spec.num_layers = config.num_hidden_layers;
  spec.hidden = config.hidden_size;
  spec.num_heads = config.num_attention_heads;
  spec.num_kv_heads = config.num_key_value_heads;
  spec.head_size = config.head_dim;
  spec.mlp_width = config.intermediate_size;
  spec.vocab_size = config.vocab_size;
  spec.max_positions = config.max_position_embeddings;
  spec.norm_epsilon = static_cast<float>(config.rms_norm_eps);
  spec.attention_scale = 1.0f / std::sqrt(static_cast<float>(spec.head_size));
  spec.tied_head = config.tie_word_embeddings;
  spec.qkv_bias = family->qkv_bias || config.attention_bias;
  spec.o_bias = config.attention_bias;
  ASSIGN_OR_RETURN(spec.random_format, RandomFormat(config));
  RETURN_IF_ERROR(ReadRope(config, &spec.rope));
  return spec;
}

}  // namespace penstock::worker
