// Products with packed rows: prepares activations, cuts the work into items and spreads them over
// threads.
//
// All of it is ours rather than oneDNN's, for any batch. Measured on 2 idle cores of Zen 4 at the
// layers' shapes of SmolLM2-135M (tools/bench/kernels/linear_bench has both), GFLOP/s, Q4_1
// with activations as int8:
//   tokens                                      8       32       128      512
//   Q4_1 weights, here                       525-615 570-610  595-620  605-630
//   bfloat16 weights, here                   230-345 370-400  415-430  400-440
//   bfloat16 weights, oneDNN 2.6, its layout 215-350 350-380  420-440  430-460
// That 5% of large bfloat16 batches isn't worth a second copy of the weights (decoding would keep
// its own), bits that depend on the batch, and OpenMP's threads, which wait for each other: on
// cores that other processes use too a product of 1 ms took 10.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>

#include "kernels/cpu/linear_kernels.h"
#include "kernels/cpu/linear_pack.h"
#include "kernels/cpu/thread_pool.h"

namespace penstock::kernels::cpu {

// out[t][n] = sum over k of x[t][k] * weight[n][col_begin + k], k in [0, cols), (+ bias[n]).
struct Product {
  const float* x = nullptr;
  int64_t x_stride = 0;  // elements
  const float* bias = nullptr;
  float* out = nullptr;
  int64_t out_stride = 0;
  int32_t tokens = 0;
  int64_t col_begin = 0;
  int64_t cols = 0;
};

// Owns the threads and the scratch. One thread calls at a time.
class Multiplier {
 public:
  Multiplier(int threads, const LinearKernels& kernels);
  // False if there is no memory for it.
  bool Reserve(int64_t max_tokens, int64_t max_cols);
  ThreadPool& pool() { return pool_; }

  // `parts` are the rows of one weight, in order. Needs Reserve() for as many tokens and columns.
  void Multiply(std::span<const PackedRows> parts, const Product& p);

 private:
  // What a form wants made of the activations.
  enum class Input : uint8_t { kAsIs, kBFloat16, kQuantized };
  struct Preparation {
    Input input = Input::kAsIs;
    Activations activations = Activations::kInt8;
    int32_t zero = 0;
    int32_t group = 0;
    bool operator==(const Preparation&) const = default;
  };
  // Tokens, tiles or groups of rows, [begin, end).
  struct Range {
    int64_t begin;
    int64_t end;
    static Range Share(int64_t count, int64_t index, int64_t shares) {
      return {count * index / shares, count * (index + 1) / shares};
    }
    int64_t size() const { return end - begin; }
  };
  struct FreeAligned {
    void operator()(std::byte* p) const { ::operator delete[](p, std::align_val_t{64}); }
  };
  // How a product is cut: an item is `groups` groups of rows by a share of the token tiles.
  struct Cut {
    int64_t groups = 0;
    int64_t tiles = 0;
    int64_t token_blocks = 0;
    int64_t items = 0;
  };
  // Of one thread: the last product it prepared activations for.
  struct alignas(64) Prepared {
    int64_t product = 0;
  };

  void MultiplyChunk(std::span<const PackedRows> parts, const Product& p);
  // For parts that want the same preparation.
  void MultiplyAlike(std::span<const PackedRows> parts, const Product& p);
  Preparation PreparationFor(const PackedRows& part) const;
  void Prepare(const Preparation& how, const Product& p, int64_t token, std::byte* prepared) const;
  Cut CutFor(std::span<const PackedRows> parts, int64_t tokens) const;
  void MultiplyItem(std::span<const PackedRows> parts, const Product& p, const Cut& cut,
                    int64_t item, const std::byte* prepared) const;
  void MultiplyQuant(const PackedRows& part, const Product& p, Range groups, Range tiles,
                     const std::byte* prepared) const;
  void MultiplyDense(const PackedRows& part, const Product& p, Range groups, Range tiles,
                     const std::byte* prepared) const;

  const LinearKernels kernels_;
  ThreadPool pool_;
  // First the threads' shared area, then one for each thread's own use.
  std::unique_ptr<std::byte[], FreeAligned> scratch_;
  std::unique_ptr<Prepared[]> prepared_;
  int64_t num_products_ = 0;
  int64_t max_tokens_ = 0;
  int64_t max_cols_ = 0;
  size_t shared_bytes_ = 0;
  size_t private_bytes_ = 0;
};

}  // namespace penstock::kernels::cpu
