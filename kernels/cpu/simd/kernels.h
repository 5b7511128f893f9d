// The inner loops of the ops, once for each instruction set. Pure functions of their arguments: no
// threads, no allocation, nothing of the standard library (see vec.h). Each works on one row, so
// no number depends on the rows beside it.
#pragma once

#include <stdint.h>

namespace penstock::kernels::cpu {

struct Half {
  uint16_t bits;  // IEEE binary16
};
struct BFloat {
  uint16_t bits;  // the upper half of a float32
};
enum class KvType : uint8_t { kF32, kF16, kBF16 };

// Inside a page, for one KV head: K stands in blocks of kKvBlock positions, [block][e][position in
// block], so that a block's scores are one vector; the last block is narrower if P is not a
// multiple. V is [position][e].
constexpr int kKvBlock = 16;
// Up to this many queries of one row and one KV head are worked on together.
constexpr int kMaxTileQueries = 32;
// A head's size is a multiple of 16 up to this.
constexpr int kMaxHeadSize = 256;

struct AttentionTile {
  int32_t num_queries = 0;
  const float* q[kMaxTileQueries];       // [E] each
  float* out[kMaxTileQueries];           // [E] each
  int32_t num_visible[kMaxTileQueries];  // query m sees positions [0, num_visible[m]); >= 1
  int32_t head_size = 0;
  float scale = 0;
  // Position p is line p % page_size of the head's page at k + pages[p / page_size] * page_stride.
  const void* k = nullptr;
  const void* v = nullptr;
  KvType kv_type = KvType::kF32;
  const int32_t* pages = nullptr;
  int64_t page_stride = 0;  // elements
  int32_t page_size = 0;
};

// One row of logits has n entries throughout.
struct Kernels {
  // residual[n] += segment 0 + segment 1 + ... of x, left to right, `segment_stride` apart (none if
  // x is null); then out = residual / rms(residual) * weight unless out is null.
  void (*add_rms_norm)(const float* x, int64_t segment_stride, int num_segments, float* residual,
                       const float* weight, float* out, int64_t n, float epsilon);
  // Rotates num_heads heads of head_size, `cos_sin` being the angles of their position.
  void (*rope)(float* heads, int num_heads, int head_size, int rotary_size, bool interleaved,
               const float* cos_sin);
  // Writes one head's k or v [head_size] as line `line` of its page.
  void (*write_k)(const float* k, int head_size, KvType type, void* page, int page_size, int line);
  void (*write_v)(const float* v, int head_size, KvType type, void* page, int line);
  void (*attend)(const AttentionTile& tile);
  // out[i] = silu(gate[i]) * up[i]
  void (*silu_mul)(const float* gate, const float* up, float* out, int64_t n);
  void (*exp)(const float* x, float* out, int64_t n);

  // The lowest index of the greatest; -1 if any is NaN or infinite and all_finite is asked for.
  int64_t (*arg_max)(const float* x, int64_t n, bool all_finite);
  // out[i] = exp((x[i] - shift) * factor), 0 where that is under `floor`; block_sums[b] = the sum
  // of the b-th kSumBlock of them. Returns the sum of block_sums.
  double (*exp_sum)(const float* x, int64_t n, float shift, float factor, float floor, float* out,
                    double* block_sums);
  // How many are > value; *sum, unless null, is their sum.
  int64_t (*count_above)(const float* x, int64_t n, float value, double* sum);
  // The least i >= begin with low < x[i] <= high, or n.
  int64_t (*next_between)(const float* x, int64_t begin, int64_t n, float low, float high);
  // Zeroes those < floor; block_sums and the result as exp_sum's.
  double (*drop_below)(float* x, int64_t n, float floor, double* block_sums);
};

constexpr int kSumBlock = 1024;

namespace sse2 {
extern const Kernels kKernels;
}
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}

}  // namespace penstock::kernels::cpu
