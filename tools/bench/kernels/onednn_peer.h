// oneDNN's matmul, for comparison: bfloat16 x bfloat16 -> float32, weights in the layout it likes.
#pragma once

#include <cstdint>
#include <memory>

namespace penstock::bench {

class OneDnnMatmul {
 public:
  virtual ~OneDnnMatmul() = default;
  // One product with the next of the copies of the weights. Rounding the activations isn't in it.
  virtual void Multiply() = 0;
};

// `copies` weights [rows, cols], and activations [tokens, cols]; uses `threads` OpenMP threads.
std::unique_ptr<OneDnnMatmul> MakeOneDnnMatmul(int64_t rows, int64_t cols, int64_t tokens,
                                               int copies, int threads);

}  // namespace penstock::bench
