#include "tests/unit/worker/hf_model.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <random>

namespace penstock::worker {

HfModel::HfModel()
    : config({{"architectures", {"LlamaForCausalLM"}},
              {"vocab_size", 96},
              {"max_position_embeddings", 128},
              {"hidden_size", 64},
              {"intermediate_size", 128},
              {"num_hidden_layers", 2},
              {"num_attention_heads", 4},
              {"num_key_value_heads", 2},
              {"head_dim", 32},
              {"rms_norm_eps", 1e-5},
              {"tie_word_embeddings", false},
              {"dtype", "bfloat16"}}) {
  tensors["model.embed_tokens.weight"] = {.shape = {96, 64}};
  tensors["lm_head.weight"] = {.shape = {96, 64}};
  tensors["model.norm.weight"] = {.shape = {64}};
  for (int layer = 0; layer < 2; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    tensors[prefix + "input_layernorm.weight"] = {.shape = {64}};
    tensors[prefix + "post_attention_layernorm.weight"] = {.shape = {64}};
    tensors[prefix + "self_attn.q_proj.weight"] = {.shape = {128, 64}};
    tensors[prefix + "self_attn.k_proj.weight"] = {.shape = {64, 64}};
    tensors[prefix + "self_attn.v_proj.weight"] = {.shape = {64, 64}};
    tensors[prefix + "self_attn.o_proj.weight"] = {.shape = {64, 128}};
    tensors[prefix + "mlp.gate_proj.weight"] = {.shape = {128, 64}};
    tensors[prefix + "mlp.up_proj.weight"] = {.shape = {128, 64}};
    tensors[prefix + "mlp.down_proj.weight"] = {.shape = {64, 128}};
  }
}

std::string HfModel::WriteConfig() {
  folder_.Write("config.json", config.dump());
  return folder_.path();
}

std::string HfModel::Write() {
  SafetensorsBuilder builder;
  uint32_t random = 1;
  for (const auto& [name, tensor] : tensors) {
    uint64_t bytes = tensor.dtype == "F32" || tensor.dtype == "I32" ? 4 : 2;
    for (const uint64_t size : tensor.shape) bytes *= size;
    std::string data;
    // Bytes below 0x3c are small numbers in all the types.
    for (; data.size() < bytes; random = random * 1664525 + 1013904223) {
      data += static_cast<char>((random >> 24) % 0x3c);
    }
    builder.Tensor(name, tensor.dtype, tensor.shape, data);
  }
  folder_.Write("model.safetensors", builder.Build());
  return WriteConfig();
}

std::string HfModel::WriteNormal() {
  config["tie_word_embeddings"] = true;
  const uint64_t hidden = config["hidden_size"], mlp = config["intermediate_size"];
  const uint64_t q =
      config["num_attention_heads"].get<uint64_t>() * config["head_dim"].get<uint64_t>();
  const uint64_t kv =
      config["num_key_value_heads"].get<uint64_t>() * config["head_dim"].get<uint64_t>();
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  SafetensorsBuilder builder;
  auto add = [&](const std::string& name, std::vector<uint64_t> shape, float scale) {
    uint64_t count = 1;
    for (const uint64_t size : shape) count *= size;
    std::string data(count * sizeof(uint16_t), '\0');
    for (uint64_t i = 0; i < count; ++i) {
      const float value =
          shape.size() == 1 ? 1 : scale * normal(random) / std::sqrt(static_cast<float>(shape[1]));
      // The upper half of a float is a bf16.
      std::memcpy(&data[i * sizeof(uint16_t)],
                  reinterpret_cast<const char*>(&value) + sizeof(uint16_t), sizeof(uint16_t));
    }
    builder.Tensor(name, "BF16", shape, data);
  };
  add("model.embed_tokens.weight", {config["vocab_size"], hidden}, 3);
  add("model.norm.weight", {hidden}, 1);
  for (int layer = 0; layer < config["num_hidden_layers"].get<int>(); ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    add(prefix + "input_layernorm.weight", {hidden}, 1);
    add(prefix + "post_attention_layernorm.weight", {hidden}, 1);
    add(prefix + "self_attn.q_proj.weight", {q, hidden}, std::sqrt(3.0f));
    add(prefix + "self_attn.k_proj.weight", {kv, hidden}, std::sqrt(3.0f));
    add(prefix + "self_attn.v_proj.weight", {kv, hidden}, 1);
    add(prefix + "self_attn.o_proj.weight", {hidden, q}, 1);
    add(prefix + "mlp.gate_proj.weight", {mlp, hidden}, 1);
    add(prefix + "mlp.up_proj.weight", {mlp, hidden}, 1);
    add(prefix + "mlp.down_proj.weight", {hidden, mlp}, 1);
  }
  folder_.Write("model.safetensors", builder.Build());
  return WriteConfig();
}

}  // namespace penstock::worker
