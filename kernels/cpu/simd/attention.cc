// Softmax(q K^T) V of a tile of queries over one head's pages.
//
// A query's numbers depend on its own positions alone: they are taken in chunks of
// kChunkBlocks blocks counted from position 0, each chunk is reduced on its own, and the chunks are
// merged in order with the running maximum (the online softmax of Milakov and Gimelshein, 2018; Dao
// et al., 2022). What other queries share the tile, or which step they came in, changes nothing.
#include "kernels/cpu/simd/loops.h"
#include "kernels/cpu/simd/vec.h"

namespace penstock::kernels::cpu::PENSTOCK_ISA {
namespace {

constexpr float kInfinity = __builtin_inff();
constexpr int kChunkBlocks = 8;
constexpr int kChunk = kChunkBlocks * kKvBlock;
static_assert(kKvBlock == kLanes);

// How many queries share a load of K or V, as many as the registers hold.
#if defined(__AVX512F__)
constexpr int kMaxGroup = 6;
constexpr int kSlice = 4;  // vectors of a head worked on at a time
#else
constexpr int kMaxGroup = 3;
constexpr int kSlice = 1;
#endif

// The blocks of a chunk: where they lie and how many positions each has.
template <typename T>
struct Chunk {
  int num_blocks = 0;
  const T* k[kChunkBlocks];
  const T* v[kChunkBlocks];
  int width[kChunkBlocks];
  int begin[kChunkBlocks];  // first position
};

// One query's state while its chunks are merged; its sum of weighted values is in `out`.
struct Running {
  float most = -kInfinity;
  float sum = 0;
};

// scores[m][block] = scale * q[m] . k of the block's positions, -inf where the query can't see.
template <typename T, int M>
PENSTOCK_INLINE void ScoreBlock(const T* k, const float* const* q, int head_size, Vec* dot) {
  // Two sums a query, over even and odd e: with one query alone, one would wait for itself.
  Vec even[M], odd[M];
  for (int m = 0; m < M; ++m) even[m] = odd[m] = Set(0);
  for (int e = 0; e < head_size; e += 2) {
    const Vec k0 = Load(k + e * kKvBlock);
    const Vec k1 = Load(k + (e + 1) * kKvBlock);
    for (int m = 0; m < M; ++m) {
      even[m] = Fma(Set(q[m][e]), k0, even[m]);
      odd[m] = Fma(Set(q[m][e + 1]), k1, odd[m]);
    }
  }
  for (int m = 0; m < M; ++m) dot[m] = Add(even[m], odd[m]);
}

// A block narrower than a vector, widened.
template <typename T>
void CopyNarrow(const T* k, int head_size, int width, T* out) {
  for (int e = 0; e < head_size; ++e) {
    for (int i = 0; i < kKvBlock; ++i) out[e * kKvBlock + i] = i < width ? k[e * width + i] : T{};
  }
}

template <typename T, int M>
void Scores(const Chunk<T>& chunk, const AttentionTile& tile, int first, float (*scores)[kChunk]) {
  T narrow[kMaxHeadSize * kKvBlock];
  for (int b = 0; b < chunk.num_blocks; ++b) {
    const T* k = chunk.k[b];
    if (chunk.width[b] < kKvBlock) {
      CopyNarrow(k, tile.head_size, chunk.width[b], narrow);
      k = narrow;
    }
    Vec dot[M];
    ScoreBlock<T, M>(k, tile.q + first, tile.head_size, dot);
    for (int m = 0; m < M; ++m) {
      int visible = tile.num_visible[first + m] - chunk.begin[b];
      visible = visible < chunk.width[b] ? visible : chunk.width[b];
      Vec s = Mul(dot[m], Set(tile.scale));
      if (visible < kKvBlock) s = Select(FirstLanes(visible > 0 ? visible : 0), s, Set(-kInfinity));
      Store(scores[m] + b * kKvBlock, s);
    }
  }
}

// Turns a query's scores of a chunk into weights relative to their maximum.
PENSTOCK_INLINE Running Softmax(float* scores, int num_blocks) {
  Vec most = Set(-kInfinity);
  for (int b = 0; b < num_blocks; ++b) most = Max(most, Load(scores + b * kKvBlock));
  Running chunk;
  chunk.most = ReduceMax(most);
  Vec sum = Set(0);
  for (int b = 0; b < num_blocks; ++b) {
    const Vec weight = Exp(Sub(Load(scores + b * kKvBlock), Set(chunk.most)));
    Store(scores + b * kKvBlock, weight);
    sum = Add(sum, weight);
  }
  chunk.sum = ReduceAdd(sum);
  return chunk;
}

// How a chunk's values are taken into the running ones: out = out * keep + values * take.
struct Merge {
  float keep = 1;
  float take = 0;
};

PENSTOCK_INLINE Merge MergeInto(Running* running, const Running& chunk) {
  if (running->most == -kInfinity) {
    *running = chunk;
    return {0, 1};
  }
  const float most = running->most > chunk.most ? running->most : chunk.most;
  float scale[kLanes] = {running->most - most, chunk.most - most};
  Store(scale, Exp(Load(scale)));
  running->sum = running->sum * scale[0] + chunk.sum * scale[1];
  running->most = most;
  return {scale[0], scale[1]};
}

// out[m][e ..] of N vectors: the chunk's weighted values, merged in.
template <typename T, int M, int N>
PENSTOCK_INLINE void Values(const Chunk<T>& chunk, int num_positions, int head_size, int e,
                            const float (*weights)[kChunk], const Merge* merge, float* const* out) {
  Vec sum[M][N];
  for (int m = 0; m < M; ++m) {
    for (int j = 0; j < N; ++j) sum[m][j] = Set(0);
  }
  for (int b = 0; b < chunk.num_blocks; ++b) {
    const T* v = chunk.v[b] + e;
    int count = num_positions - chunk.begin[b];
    count = count < chunk.width[b] ? count : chunk.width[b];
    for (int i = 0; i < count; ++i, v += head_size) {
      Vec line[N];
      for (int j = 0; j < N; ++j) line[j] = Load(v + j * kLanes);
      for (int m = 0; m < M; ++m) {
        const Vec weight = Set(weights[m][b * kKvBlock + i]);
        for (int j = 0; j < N; ++j) sum[m][j] = Fma(weight, line[j], sum[m][j]);
      }
    }
  }
  for (int m = 0; m < M; ++m) {
    if (merge[m].take == 0 && merge[m].keep == 1) continue;
    for (int j = 0; j < N; ++j) {
      float* o = out[m] + e + j * kLanes;
      Vec merged = Mul(sum[m][j], Set(merge[m].take));
      // The first chunk finds nothing in `out`, which may hold anything.
      if (merge[m].keep != 0) merged = Fma(Load(o), Set(merge[m].keep), merged);
      Store(o, merged);
    }
  }
}

// Queries [first, first + M) of the tile over one chunk.
template <typename T, int M>
void AttendChunk(const Chunk<T>& chunk, const AttentionTile& tile, int first, Running* running) {
  alignas(64) float scores[M][kChunk];
  int num_positions = 0;
  for (int m = 0; m < M; ++m) {
    const int visible = tile.num_visible[first + m];
    num_positions = visible > num_positions ? visible : num_positions;
  }
  if (num_positions <= chunk.begin[0]) return;
  Scores<T, M>(chunk, tile, first, scores);
  Merge merge[M];
  for (int m = 0; m < M; ++m) {
    if (tile.num_visible[first + m] <= chunk.begin[0]) {
      for (int i = 0; i < chunk.num_blocks * kKvBlock; i += kLanes) Store(scores[m] + i, Set(0));
      continue;
    }
    merge[m] = MergeInto(&running[first + m], Softmax(scores[m], chunk.num_blocks));
  }
  int e = 0;
  for (; e + kSlice * kLanes <= tile.head_size; e += kSlice * kLanes) {
    Values<T, M, kSlice>(chunk, num_positions, tile.head_size, e, scores, merge, tile.out + first);
  }
  for (; e < tile.head_size; e += kLanes) {
    Values<T, M, 1>(chunk, num_positions, tile.head_size, e, scores, merge, tile.out + first);
  }
}

template <typename T>
void AttendGroup(const Chunk<T>& chunk, const AttentionTile& tile, int first, int count,
                 Running* running) {
  switch (count) {
    case 1:
      return AttendChunk<T, 1>(chunk, tile, first, running);
    case 2:
      return AttendChunk<T, 2>(chunk, tile, first, running);
    case 3:
      return AttendChunk<T, 3>(chunk, tile, first, running);
#if defined(__AVX512F__)
    case 4:
      return AttendChunk<T, 4>(chunk, tile, first, running);
    case 5:
      return AttendChunk<T, 5>(chunk, tile, first, running);
    case 6:
      return AttendChunk<T, 6>(chunk, tile, first, running);
#endif
  }
}

// Fills a chunk with blocks from `position` on, up to `end`; returns the position after it.
template <typename T>
int NextChunk(const AttentionTile& tile, int position, int end, Chunk<T>* chunk) {
  chunk->num_blocks = 0;
  while (chunk->num_blocks < kChunkBlocks && position < end) {
    const int b = chunk->num_blocks++;
    const int line = position % tile.page_size;
    const int64_t page = tile.pages[position / tile.page_size] * tile.page_stride;
    const int64_t offset = page + static_cast<int64_t>(line) * tile.head_size;
    chunk->k[b] = static_cast<const T*>(tile.k) + offset;
    chunk->v[b] = static_cast<const T*>(tile.v) + offset;
    const int left = tile.page_size - line;
    chunk->width[b] = left < kKvBlock ? left : kKvBlock;
    chunk->begin[b] = position;
    position += chunk->width[b];
  }
  return position;
}

template <typename T>
void AttendTyped(const AttentionTile& tile) {
  Running running[kMaxTileQueries];
  int end = 0;
  for (int m = 0; m < tile.num_queries; ++m) {
    end = tile.num_visible[m] > end ? tile.num_visible[m] : end;
  }
  const int num_groups = (tile.num_queries + kMaxGroup - 1) / kMaxGroup;
  Chunk<T> chunk;
  for (int position = 0; position < end;) {
    position = NextChunk(tile, position, end, &chunk);
    for (int g = 0; g < num_groups; ++g) {  // of even sizes
      const int first = tile.num_queries * g / num_groups;
      const int count = tile.num_queries * (g + 1) / num_groups - first;
      AttendGroup(chunk, tile, first, count, running);
    }
  }
  for (int m = 0; m < tile.num_queries; ++m) {
    const Vec inverse = Set(1.0f / running[m].sum);
    for (int e = 0; e < tile.head_size; e += kLanes) {
      Store(tile.out[m] + e, Mul(Load(tile.out[m] + e), inverse));
    }
  }
}

}  // namespace

void Attend(const AttentionTile& tile) {
  switch (tile.kv_type) {
    case KvType::kF32:
      return AttendTyped<float>(tile);
    case KvType::kF16:
      return AttendTyped<Half>(tile);
    case KvType::kBF16:
      return AttendTyped<BFloat>(tile);
  }
}

}  // namespace penstock::kernels::cpu::PENSTOCK_ISA
