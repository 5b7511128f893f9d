// A model's weights as the decoder wants them: packed by the backend, this rank's share.
#pragma once

#include <memory>
#include <vector>

#include "kernels/ops.h"

namespace penstock::worker {

// Matrices are [out features, in features]. Letters as in kernels/ops.h; H, G, F and the head's V
// are this rank's share. A bias that the model does not have is null.
struct LayerWeights {
  std::unique_ptr<kernels::Buffer> attention_norm;  // float [D]
  std::unique_ptr<kernels::Weight> qkv;             // [(H + 2G) * E, D]: q rows, k rows, v rows
  std::unique_ptr<kernels::Buffer> qkv_bias;        // float [(H + 2G) * E]
  std::unique_ptr<kernels::Weight> o;               // [D, H * E]
  std::unique_ptr<kernels::Buffer> o_bias;          // float [D], on rank 0 alone: parts are summed
  std::unique_ptr<kernels::Buffer> mlp_norm;        // float [D]
  std::unique_ptr<kernels::Weight> gate_up;         // [2F, D]: gate rows, then up rows
  std::unique_ptr<kernels::Weight> down;            // [D, F]
};

struct ModelWeights {
  std::unique_ptr<kernels::Weight> embedding;    // [V, D], whole on every rank
  std::unique_ptr<kernels::Weight> head;         // [V / ranks, D]; may be a view of `embedding`
  std::unique_ptr<kernels::Buffer> output_norm;  // float [D]
  std::unique_ptr<kernels::Buffer> cos_sin;      // float [max_model_len, rotary_size]
  std::vector<LayerWeights> layers;
};

}  // namespace penstock::worker
