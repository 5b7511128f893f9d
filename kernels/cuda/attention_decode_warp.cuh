// What one warp of the decode kernel (attention_decode_kernel.cuh) does by itself: it walks the
// list of tiles, streams its slices of K and V, and keeps its part of the softmax and of the
// output.
#pragma once

#include <cmath>

#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/attention_mma.cuh"

namespace penstock::kernels::cuda {

struct DecodeKernelParams {
  const __nv_bfloat16* q = nullptr;
  int64_t q_stride = 0;
  __nv_bfloat16* out = nullptr;
  const __nv_bfloat16* k = nullptr;
  const __nv_bfloat16* v = nullptr;
  const int32_t* context_len = nullptr;
  const int32_t* slot_of_token = nullptr;
  const int32_t* page_table = nullptr;
  int64_t page_table_stride = 0;
  DecodeWorkspace workspace;
  int32_t num_kv_heads = 0;
  int32_t group = 0;
  int32_t page_shift = 0;
  float scale_log2 = 0;  // scale * log2(e): the softmax is in base 2
};

template <int kHeadSize, int kQueryTiles, int kWarps, int kStages>
struct DecodeShape {
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kTokenTiles = kHeadSize == 64 ? 2 : 1;  // of 16 tokens a slice
  static constexpr int kSlice = 16 * kTokenTiles;
  static constexpr int kTile = kSlice * kWarps;
  static constexpr int kQueries = 8 * kQueryTiles;
  static constexpr int kRowChunks = kHeadSize / 8;            // of 16 bytes
  static constexpr int kSliceBytes = kSlice * kHeadSize * 2;  // of K, and of V
  static constexpr int kCopies = kSliceBytes / 512;  // 16-byte copies a lane, of K and of V
  static constexpr int kWarpBytes = kStages * 2 * kSliceBytes;
  static constexpr int kMergeRow =
      kHeadSize + 4;  // floats; the 4 spread a warp's stores over the banks
  static constexpr int kRingBytes = kWarps * kWarpBytes;
  static constexpr int MergeBytes(int group) {
    return kWarps * (group * kMergeRow * 4 + kQueries * 8);
  }
  static constexpr int SharedBytes(int group) { return kRingBytes + MergeBytes(group) + 16; }
};

// A place in the list of tiles.
template <typename Shape>
struct TileCursor {
  int row, head, tile, num_tiles, context, pages;

  __device__ explicit TileCursor(const DecodeBlockStart& start)
      : row(start.row),
        head(start.head),
        tile(start.tile),
        num_tiles(TilesOf(start.context)),
        context(start.context),
        pages(start.pages) {}
  __device__ static int TilesOf(int context) {
    return max(1, (context + Shape::kTile - 1) / Shape::kTile);
  }
  // Moves to the next tile; `more` says that there is one. True if a new (row, head) begins.
  __device__ bool Advance(const DecodeKernelParams& p, bool more) {
    if (++tile < num_tiles) return false;
    tile = 0;
    if (++head < p.num_kv_heads) return true;
    head = 0;
    ++row;
    if (more) {
      context = __ldcg(p.context_len + row);
      pages = static_cast<int>(__ldcg(p.slot_of_token + row) * p.page_table_stride);
      num_tiles = TilesOf(context);
    }
    return true;
  }
};

// Issues the copies of a warp's slices, in the order of the tiles.
template <typename Shape, int kHeadSize>
class SliceLoader {
 public:
  __device__ SliceLoader(const DecodeKernelParams& p, const DecodeBlockStart& start, int warp,
                         int lane)
      : p_(p), warp_(warp), lane_(lane), left_(start.count), at_(start) {
    LoadPages();
  }

  // True if the slice holds the row's last token, whose key and value this very step has written.
  __device__ bool has_new_token() const {
    return left_ > 0 && first_token() + Shape::kSlice >= at_.context;
  }

  // Starts the copy of the next slice into the stage at `shared`, and moves on.
  __device__ void Next(uint32_t shared) {
    if (left_ <= 0) return;
    if (first_token() < at_.context) Copy(shared);
    --left_;
    const bool new_head = at_.Advance(p_, left_ > 0);
    if (left_ > 0 && (new_head || at_.tile - pages_tile_ >= kPagedTiles)) LoadPages();
  }

 private:
  static constexpr int kGroups = Shape::kSlice / 8;  // of 8 tokens: each lies in one page
  static constexpr int kPagedTiles = 32 / kGroups;   // tiles whose page ids the warp's lanes hold

  __device__ int first_token() const { return at_.tile * Shape::kTile + warp_ * Shape::kSlice; }

  __device__ void LoadPages() {
    pages_tile_ = at_.tile;
    const int token =
        (at_.tile + lane_ / kGroups) * Shape::kTile + warp_ * Shape::kSlice + lane_ % kGroups * 8;
    page_ = 0;
    if (token < at_.context) {
      page_ = __ldcg(p_.page_table + at_.pages + (token >> p_.page_shift));
    }
  }

  __device__ void Copy(uint32_t shared) {
    constexpr int kCopiesPerGroup = Shape::kCopies / kGroups;
    constexpr int kTokensPerCopy = 32 / Shape::kRowChunks;
    const int first = first_token();
    const int valid = at_.context - first;
    const int page_size = 1 << p_.page_shift;
    const int lane_token = lane_ / Shape::kRowChunks;
    const int lane_chunk = lane_ % Shape::kRowChunks;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const int page = __shfl_sync(0xffffffffu, page_, (at_.tile - pages_tile_) * kGroups + group);
      const int line = (first + group * 8) & (page_size - 1);
      const int64_t offset =
          ((static_cast<int64_t>(page) * p_.num_kv_heads + at_.head) * page_size + line) *
              kHeadSize +
          lane_ * 8;
#pragma unroll
      for (int i = 0; i < kCopiesPerGroup; ++i) {
        const int token = group * 8 + i * kTokensPerCopy + lane_token;
        const uint32_t to = shared + token * (kHeadSize * 2) + ((lane_chunk ^ (token & 7)) << 4);
        CopyAsync16(to, p_.k + offset + i * 256, token < valid);
        CopyAsync16(to + Shape::kSliceBytes, p_.v + offset + i * 256, token < valid);
      }
    }
  }

  const DecodeKernelParams& p_;
  const int warp_;
  const int lane_;
  int left_;
  TileCursor<Shape> at_;
  int pages_tile_ = 0;
  int page_ = 0;
};

// A warp's running softmax over the slices of one (row, head).
template <typename Shape, int kHeadSize, int kQueryTiles>
struct WarpState {
  float out[kHeadSize / 16][kQueryTiles][4];  // O^T: rows are head elements, columns queries
  float maximum[kQueryTiles][2];              // of query 2 * (lane % 4) + {0, 1}
  float sum[kQueryTiles][2];                  // this lane's tokens only

  __device__ void Clear() {
#pragma unroll
    for (int j = 0; j < kQueryTiles; ++j) {
#pragma unroll
      for (int i = 0; i < kHeadSize / 16; ++i) {
#pragma unroll
        for (int c = 0; c < 4; ++c) out[i][j][c] = 0;
      }
      maximum[j][0] = maximum[j][1] = -INFINITY;
      sum[j][0] = sum[j][1] = 0;
    }
  }

  // Adds the slice at `shared`, of whose tokens the first `valid` (> 0) count.
  __device__ void Add(uint32_t shared, const uint32_t (&q)[kHeadSize / 16][kQueryTiles][2],
                      int valid, float scale_log2, int lane) {
    // Two sums, of even and odd steps: half as long a chain of dependent products.
    float s[Shape::kTokenTiles][kQueryTiles][4] = {}, odd[Shape::kTokenTiles][kQueryTiles][4] = {};
    const int k_token = lane % 16;
#pragma unroll
    for (int step = 0; step < kHeadSize / 16; ++step) {
      const int chunk = (step * 2 + lane / 16) ^ (k_token & 7);
#pragma unroll
      for (int t = 0; t < Shape::kTokenTiles; ++t) {
        uint32_t a[4];
        LoadMatrix4(a, shared + (t * 16 + k_token) * (kHeadSize * 2) + (chunk << 4));
#pragma unroll
        for (int j = 0; j < kQueryTiles; ++j) {
          MultiplyAdd(step % 2 == 0 ? s[t][j] : odd[t][j], a, q[step][j][0], q[step][j][1]);
        }
      }
    }
#pragma unroll
    for (int t = 0; t < Shape::kTokenTiles; ++t) {
#pragma unroll
      for (int j = 0; j < kQueryTiles; ++j) {
#pragma unroll
        for (int c = 0; c < 4; ++c) s[t][j][c] += odd[t][j][c];
      }
    }
    uint32_t weights[Shape::kTokenTiles][kQueryTiles][2];
    Softmax(s, weights, valid, scale_log2, lane);

    const uint32_t values = shared + Shape::kSliceBytes;
    const int v_token = lane % 8 + lane / 16 * 8;
#pragma unroll
    for (int t = 0; t < Shape::kTokenTiles; ++t) {
#pragma unroll
      for (int i = 0; i < kHeadSize / 16; ++i) {
        const int chunk = (i * 2 + lane / 8 % 2) ^ (v_token & 7);
        uint32_t a[4];
        LoadMatrix4Transposed(a, values + (t * 16 + v_token) * (kHeadSize * 2) + (chunk << 4));
#pragma unroll
        for (int j = 0; j < kQueryTiles; ++j) {
          MultiplyAdd(out[i][j], a, weights[t][j][0], weights[t][j][1]);
        }
      }
    }
  }

  __device__ void Softmax(float (&s)[Shape::kTokenTiles][kQueryTiles][4],
                          uint32_t (&weights)[Shape::kTokenTiles][kQueryTiles][2], int valid,
                          float scale_log2, int lane) {
#pragma unroll
    for (int j = 0; j < kQueryTiles; ++j) {
      float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
      for (int t = 0; t < Shape::kTokenTiles; ++t) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int token = t * 16 + lane / 4 + c / 2 * 8;
          s[t][j][c] = token < valid ? s[t][j][c] * scale_log2 : -INFINITY;
          top[c % 2] = fmaxf(top[c % 2], s[t][j][c]);
        }
      }
      bool grew = false;
      float shrink[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2) {
          top[c] = fmaxf(top[c], __shfl_xor_sync(0xffffffffu, top[c], mask));
        }
        const float now = fmaxf(maximum[j][c], top[c]);  // finite: token 0 is valid
        shrink[c] = Exp2(maximum[j][c] - now);
        grew |= now != maximum[j][c];
        maximum[j][c] = now;
        sum[j][c] *= shrink[c];
      }
      if (__any_sync(0xffffffffu, grew)) {
#pragma unroll
        for (int i = 0; i < kHeadSize / 16; ++i) {
#pragma unroll
          for (int c = 0; c < 4; ++c) out[i][j][c] *= shrink[c % 2];
        }
      }
#pragma unroll
      for (int t = 0; t < Shape::kTokenTiles; ++t) {
        float w[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          w[c] = Exp2(s[t][j][c] - maximum[j][c % 2]);
          sum[j][c % 2] += w[c];
        }
        weights[t][j][0] = TransposeMatrix(PackBf16(w[0], w[1]));
        weights[t][j][1] = TransposeMatrix(PackBf16(w[2], w[3]));
      }
    }
  }
};

// q as the right-hand fragments of K Q^T; columns of queries past the group are 0.
template <int kHeadSize, int kQueryTiles>
__device__ __forceinline__ void LoadQueries(uint32_t (&q)[kHeadSize / 16][kQueryTiles][2],
                                            const DecodeKernelParams& p, int row, int head,
                                            int lane) {
#pragma unroll
  for (int j = 0; j < kQueryTiles; ++j) {
    const int query = j * 8 + lane / 4;
    const __nv_bfloat16* from = p.q + row * p.q_stride +
                                static_cast<int64_t>(head * p.group + query) * kHeadSize +
                                lane % 4 * 2;
#pragma unroll
    for (int step = 0; step < kHeadSize / 16; ++step) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        q[step][j][half] =
            query < p.group ? *reinterpret_cast<const uint32_t*>(from + step * 16 + half * 8) : 0u;
      }
    }
  }
}

}  // namespace penstock::kernels::cuda
