#include "kernels/cpu/linear_multiply.h"

#include <omp.h>

#include <algorithm>

#include "common/log.h"

namespace penstock::kernels::cpu {
namespace {

// Tokens prepared and multiplied at a time: bounds the scratch, and keeps it in the second-level
// cache.
constexpr int64_t kChunkTokens = 256;
// Up to here each thread prepares all tokens for itself, which is cheaper than a barrier.
constexpr int64_t kPrivateTokens = 4;

int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A bfloat16 takes 2 bytes, an ActivationBlock 1.5 a column.
size_t PreparedBytes(int64_t tokens, int64_t cols) {
  return static_cast<size_t>(tokens * DivideUp(cols, kBlock) * kBlock * 2);
}

}  // namespace

Multiplier::Multiplier(int threads, const LinearKernels& kernels)
    : threads_(threads), kernels_(kernels) {
  CHECK(threads >= 1);
}

void Multiplier::Reserve(int64_t max_tokens, int64_t max_cols) {
  max_tokens_ = max_tokens;
  max_cols_ = max_cols;
  shared_bytes_ = PreparedBytes(std::min(max_tokens, kChunkTokens), max_cols);
  private_bytes_ = PreparedBytes(kPrivateTokens, max_cols);
  const size_t bytes = shared_bytes_ + private_bytes_ * static_cast<size_t>(threads_);
  scratch_.reset(static_cast<std::byte*>(::operator new[](bytes, std::align_val_t{64})));
}

void Multiplier::Multiply(std::span<const PackedRows> parts, const Product& p) const {
  CHECK(p.tokens <= max_tokens_ && p.cols <= max_cols_);
  for (int64_t t = 0; t < p.tokens; t += kChunkTokens) {
    Product chunk = p;
    chunk.x += t * p.x_stride;
    chunk.out += t * p.out_stride;
    chunk.tokens = static_cast<int32_t>(std::min(p.tokens - t, kChunkTokens));
    MultiplyChunk(parts, chunk);
  }
}

void Multiplier::MultiplyChunk(std::span<const PackedRows> parts, const Product& p) const {
  if (threads_ == 1) return Run(parts, p, 0, 1);
#pragma omp parallel num_threads(threads_)
  Run(parts, p, omp_get_thread_num(), omp_get_num_threads());
}

void Multiplier::Run(std::span<const PackedRows> parts, const Product& p, int thread,
                     int threads) const {
  const bool alone = threads == 1 || p.tokens <= kPrivateTokens;
  std::byte* prepared = scratch_.get();
  if (threads > 1 && alone)
    prepared += shared_bytes_ + private_bytes_ * static_cast<size_t>(thread);
  const int64_t tiles = DivideUp(p.tokens, kQuantTokens);
  Preparation made;
  int64_t row = 0;
  for (const PackedRows& part : parts) {
    const Preparation wanted = PreparationFor(part.form);
    if (wanted.input != Input::kAsIs && wanted != made) {
      if (!alone && made.input != Input::kAsIs) {  // others may still read what this overwrites
#pragma omp barrier
      }
      Prepare(wanted, p, alone ? Range{0, tiles} : Range::Share(tiles, thread, threads), prepared);
      if (!alone) {
#pragma omp barrier
      }
      made = wanted;
    }
    Product mine = p;
    mine.out += row;
    if (p.bias != nullptr) mine.bias += row;
    const Range groups = Range::Share(DivideUp(part.rows, kGroupRows), thread, threads);
    if (IsQuantForm(part.form)) {
      RunQuant(part, mine, groups, prepared);
    } else {
      RunDense(part, mine, groups, prepared);
    }
    row += part.rows;
  }
}

Multiplier::Preparation Multiplier::PreparationFor(Form form) const {
  if (IsQuantForm(form)) return {Input::kQuantized, ZeroOf(form), GroupOf(form)};
  const bool round = form == Form::kBFloat16 && kernels_.round_bfloat16 != nullptr;
  return {round ? Input::kBFloat16 : Input::kAsIs};
}

void Multiplier::Prepare(const Preparation& how, const Product& p, Range tiles,
                         std::byte* prepared) const {
  const int64_t num_tiles = DivideUp(p.tokens, kQuantTokens), num_blocks = p.cols / kBlock;
  for (int64_t i = tiles.begin; i < tiles.end; ++i) {
    const Range tokens = Range::Share(p.tokens, i, num_tiles);
    for (int64_t t = tokens.begin; t < tokens.end; ++t) {
      const float* x = p.x + t * p.x_stride;
      if (how.input == Input::kBFloat16) {
        kernels_.round_bfloat16(x, p.cols, reinterpret_cast<uint16_t*>(prepared) + t * p.cols);
        continue;
      }
      // A tile's tokens lie side by side, block by block.
      auto* blocks = reinterpret_cast<ActivationBlock*>(prepared) + tokens.begin * num_blocks;
      kernels_.quantize({x, blocks + (t - tokens.begin), tokens.size(),
                         static_cast<int32_t>(num_blocks), how.zero, how.group});
    }
  }
}

void Multiplier::RunQuant(const PackedRows& part, const Product& p, Range groups,
                          const std::byte* prepared) const {
  CHECK(p.col_begin % kBlock == 0 && p.cols % kBlock == 0);
  const auto kernel = kernels_.quant[static_cast<int>(part.form)];
  const auto* blocks = reinterpret_cast<const ActivationBlock*>(prepared);
  const int64_t num_blocks = p.cols / kBlock, num_tiles = DivideUp(p.tokens, kQuantTokens);
  QuantTile tile;
  tile.block_begin = static_cast<int32_t>(p.col_begin / kBlock);
  tile.block_end = static_cast<int32_t>(tile.block_begin + num_blocks);
  tile.out_stride = p.out_stride;
  for (int64_t g = groups.begin; g < groups.end; ++g) {
    const int64_t row = g * kGroupRows;
    tile.group = part.data + g * part.group_bytes;
    tile.num_rows = static_cast<int32_t>(std::min<int64_t>(part.rows - row, kGroupRows));
    tile.bias = p.bias == nullptr ? nullptr : p.bias + row;
    for (int64_t i = 0; i < num_tiles; ++i) {
      const Range tokens = Range::Share(p.tokens, i, num_tiles);
      tile.x = blocks + tokens.begin * num_blocks;
      tile.num_tokens = static_cast<int32_t>(tokens.size());
      tile.out = p.out + tokens.begin * p.out_stride + row;
      kernel(tile);
    }
  }
}

void Multiplier::RunDense(const PackedRows& part, const Product& p, Range groups,
                          const std::byte* prepared) const {
  const bool pairs = part.form == Form::kBFloat16;
  const bool rounded = pairs && kernels_.round_bfloat16 != nullptr;
  CHECK(!pairs || (p.col_begin % 2 == 0 && p.cols % 2 == 0));
  const auto kernel = pairs                      ? kernels_.dense_bfloat16
                      : part.form == Form::kHalf ? kernels_.dense_half
                                                 : kernels_.dense_float;
  const int64_t column_bytes = kGroupRows * (part.form == Form::kFloat ? 4 : 2);
  const int64_t num_tiles = DivideUp(p.tokens, kDenseTokens);
  DenseTile tile;
  tile.group_bytes = part.group_bytes;
  tile.x_stride = rounded ? p.cols : p.x_stride;
  tile.steps = pairs ? p.cols / 2 : p.cols;
  tile.out_stride = p.out_stride;
  for (int64_t g = groups.begin; g < groups.end; g += kDenseGroups) {
    const int64_t row = g * kGroupRows;
    tile.weights = part.data + g * part.group_bytes + p.col_begin * column_bytes;
    tile.num_groups = static_cast<int32_t>(std::min<int64_t>(groups.end - g, kDenseGroups));
    tile.num_rows =
        static_cast<int32_t>(std::min<int64_t>(part.rows - row, tile.num_groups * kGroupRows));
    tile.bias = p.bias == nullptr ? nullptr : p.bias + row;
    for (int64_t i = 0; i < num_tiles; ++i) {
      const Range tokens = Range::Share(p.tokens, i, num_tiles);
      if (rounded) {
        tile.x = reinterpret_cast<const uint16_t*>(prepared) + tokens.begin * p.cols;
      } else {
        tile.x = p.x + tokens.begin * p.x_stride;
      }
      tile.num_tokens = static_cast<int32_t>(tokens.size());
      tile.out = p.out + tokens.begin * p.out_stride + row;
      kernel(tile);
    }
  }
}

}  // namespace penstock::kernels::cpu
