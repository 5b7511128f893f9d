// What a model is, as data: read from GGUF metadata or a Hugging Face config.json, so that a new
// family is a row in a table (spec.cc, spec_hf.cc) and the decoder stays one.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/formats/gguf.h"
#include "kernels/ops.h"

namespace penstock::worker {

struct RopeSpec {
  float theta = 10000.0f;
  int rotary_size = 0;             // leading elements of a head that rotate; even
  bool interleaved = false;        // pairs (2i, 2i+1), else (i, i + rotary_size/2)
  float linear_factor = 1.0f;      // positions are divided by it
  std::vector<float> freq_factor;  // [rotary_size/2] or empty: frequencies are divided by it
};

// Sizes are the whole model's, not a rank's share. Letters as in kernels/ops.h.
struct ModelSpec {
  std::string architecture;
  int num_layers = 0;
  int hidden = 0;        // D
  int num_heads = 0;     // H
  int num_kv_heads = 0;  // G
  int head_size = 0;     // E
  int mlp_width = 0;     // F
  int vocab_size = 0;    // V
  int max_positions = 0;
  float norm_epsilon = 0;
  float embedding_scale = 1.0f;
  float attention_scale = 0;  // on q.k
  bool tied_head = false;     // the output head is the embedding table
  bool qkv_bias = false;
  bool o_bias = false;
  // How random weights are stored, where no file says: F32, F16 or BF16.
  kernels::WeightFormat random_format = kernels::WeightFormat::kBF16;
  RopeSpec rope;
};

// INVALID_ARGUMENT when a key is missing or sizes contradict each other, UNIMPLEMENTED when the
// architecture or a variant of it is not supported; both name the key and what is supported.
absl::StatusOr<ModelSpec> ReadModelSpec(const GgufFile& file);

// The same from `dir`/config.json, and NOT_FOUND if there is none.
absl::StatusOr<ModelSpec> ReadHfModelSpec(const std::string& dir);

// The stand-in for --device=null without a model: sizes of a small model, nothing to load.
ModelSpec NullModelSpec();

// The rotation table RopeKvWrite reads: [num_positions, rotary_size], each row rotary_size/2
// cosines, then as many sines.
std::vector<float> RopeTable(const RopeSpec& rope, int num_positions);

}  // namespace penstock::worker
