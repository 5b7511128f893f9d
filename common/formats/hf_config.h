// What config.json and generation_config.json of a Hugging Face checkpoint say, as typed fields:
// read by the worker (the model's shape) and the router (vocabulary, context, end of text).
// Source: the configuration classes of the transformers library, versions 4 and 5.
//
// Reads and checks values, not whether a model can be run: that is the worker's
// (worker/model/spec).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace penstock {

// From rope_parameters (transformers 5) or rope_scaling and rope_theta (4). Fields that the type
// does not use keep their defaults.
struct HfRope {
  std::string type = "default";  // as in the file: default, linear, llama3, ...
  double theta = 10000;
  double factor = 1;
  double partial_rotary_factor = 1;  // the part of a head that rotates
  // llama3 only.
  double low_freq_factor = 0;
  double high_freq_factor = 0;
  int original_max_position_embeddings = 0;
};

struct HfConfig {
  std::string path;          // of config.json, for errors
  std::string architecture;  // the first of "architectures": LlamaForCausalLM, ...
  std::string dtype;         // float32, float16, bfloat16, ...; float32 if the file doesn't say

  // Sizes are 1 .. 2^24, so that products of two fit in 64 bits.
  int vocab_size = 0;
  int max_position_embeddings = 0;
  int hidden_size = 0;
  int intermediate_size = 0;
  int num_hidden_layers = 0;
  int num_attention_heads = 0;
  int num_key_value_heads = 0;  // num_attention_heads where the file doesn't say
  int head_dim = 0;             // hidden_size / num_attention_heads where it doesn't say
  double rms_norm_eps = 0;
  std::string hidden_act;
  bool tie_word_embeddings = false;
  bool attention_bias = false;
  bool mlp_bias = false;
  std::optional<int> sliding_window;  // nullopt: none, or switched off
  bool quantized = false;             // there is a quantization_config
  HfRope rope;

  // generation_config.json's, else config.json's. Each is inside the vocabulary.
  std::optional<int32_t> bos_token_id;
  std::vector<int32_t> eos_token_ids;  // in the file's order; may be empty
};

// Reads `dir`/config.json and, if it is there, `dir`/generation_config.json. NotFound if there is
// no config.json; InvalidArgument, naming file and key, if something is missing, of another type or
// outside its bounds.
absl::StatusOr<HfConfig> LoadHfConfig(const std::string& dir);

// What generation_config.json says about sampling; nullopt: nothing, or null. Types are checked,
// not ranges: those are the router's (router/request/validate).
struct HfGenerationConfig {
  std::string path;               // of the file, for errors
  std::optional<bool> do_sample;  // false: greedy
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<double> min_p;
  std::optional<double> repetition_penalty;
  std::optional<int64_t> top_k;
  std::optional<int64_t> max_new_tokens;
};

// Without `dir`/generation_config.json nothing is set. InvalidArgument, naming file and key, if a
// value is of another type.
absl::StatusOr<HfGenerationConfig> ReadHfGenerationConfig(const std::string& dir);

// "architecture" alone, for refusing a model whose other keys are named differently.
absl::StatusOr<std::string> ReadHfArchitecture(const std::string& dir);

// Whether a model's path is that of a Hugging Face checkpoint (a folder) rather than a GGUF file.
bool IsHfCheckpoint(const std::string& path);

}  // namespace penstock
