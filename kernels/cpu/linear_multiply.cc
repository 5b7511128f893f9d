#include "kernels/cpu/linear_multiply.h"

#include <algorithm>

#include "common/log.h"

namespace penstock::kernels::cpu {
namespace {

// Tokens prepared and multiplied at a time: bounds the scratch, and keeps it in the second-level
// cache.
constexpr int64_t kChunkTokens = 256;
// Up to here each thread prepares all tokens for itself, which is cheaper than a loop of its own.
constexpr int64_t kPrivateTokens = 4;
// Items a thread should have at least, so that one that comes late or is held up leaves little to
// wait for.
constexpr int64_t kItemsAThread = 8;
constexpr int64_t kMaxItemGroups = 8;
constexpr int64_t kMinItemTiles = 4;  // below this tokens aren't cut into blocks

int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A bfloat16 takes 2 bytes, an Int8Block 1.5 a column, an Int16Block 2.5.
size_t PreparedBytes(int64_t tokens, int64_t cols) {
  return static_cast<size_t>(tokens * DivideUp(cols, kBlock)) * sizeof(Int16Block);
}

int64_t BlockBytes(Activations activations) {
  return activations == Activations::kInt8 ? sizeof(Int8Block) : sizeof(Int16Block);
}

}  // namespace

Multiplier::Multiplier(int threads, const LinearKernels& kernels)
    : kernels_(kernels), pool_(threads), prepared_(std::make_unique<Prepared[]>(threads)) {}

bool Multiplier::Reserve(int64_t max_tokens, int64_t max_cols) {
  max_tokens_ = max_tokens;
  max_cols_ = max_cols;
  shared_bytes_ = PreparedBytes(std::min(max_tokens, kChunkTokens), max_cols);
  private_bytes_ = PreparedBytes(kPrivateTokens, max_cols);
  const size_t bytes = shared_bytes_ + private_bytes_ * static_cast<size_t>(pool_.threads());
  scratch_.reset(
      static_cast<std::byte*>(::operator new[](bytes, std::align_val_t{64}, std::nothrow)));
  return scratch_ != nullptr;
}

void Multiplier::Multiply(std::span<const PackedRows> parts, const Product& p) {
  CHECK(p.tokens <= max_tokens_ && p.cols <= max_cols_);
  for (int64_t t = 0; t < p.tokens; t += kChunkTokens) {
    Product chunk = p;
    chunk.x += t * p.x_stride;
    chunk.out += t * p.out_stride;
    chunk.tokens = static_cast<int32_t>(std::min(p.tokens - t, kChunkTokens));
    MultiplyChunk(parts, chunk);
  }
}

void Multiplier::MultiplyChunk(std::span<const PackedRows> parts, const Product& p) {
  Product rest = p;
  while (!parts.empty()) {
    const Preparation how = PreparationFor(parts.front());
    size_t count = 0;
    int64_t rows = 0;
    for (; count < parts.size() && PreparationFor(parts[count]) == how; ++count)
      rows += parts[count].rows;
    MultiplyAlike(parts.first(count), rest);
    parts = parts.subspan(count);
    rest.out += rows;
    if (rest.bias != nullptr) rest.bias += rows;
  }
}

Multiplier::Cut Multiplier::CutFor(std::span<const PackedRows> parts, int64_t tokens) const {
  const bool quant = IsQuantForm(parts.front().form);
  const int64_t wanted = pool_.threads() * kItemsAThread;
  int64_t groups = 0;
  for (const PackedRows& part : parts) groups += DivideUp(part.rows, kGroupRows);
  Cut cut;
  cut.tiles = DivideUp(tokens, quant ? kQuantTokens : kDenseTokens);
  cut.groups = std::clamp<int64_t>(groups / wanted, 1, quant ? kMaxItemGroups : kDenseGroups);
  // Dense tiles of several tokens are as high as they can be, since they are bound by loads.
  if (!quant && cut.tiles >= 2 * kMinItemTiles) cut.groups = kDenseGroups;
  int64_t items = 0;
  for (const PackedRows& part : parts) {
    items += DivideUp(DivideUp(part.rows, kGroupRows), cut.groups);
  }
  cut.token_blocks = std::clamp<int64_t>(cut.tiles / kMinItemTiles, 1, DivideUp(wanted, items));
  cut.items = items * cut.token_blocks;
  return cut;
}

void Multiplier::MultiplyAlike(std::span<const PackedRows> parts, const Product& p) {
  const Preparation how = PreparationFor(parts.front());
  const bool prepares = how.input != Input::kAsIs;
  const bool alone = prepares && p.tokens <= kPrivateTokens && pool_.threads() > 1;
  if (prepares && !alone) {
    pool_.Run(p.tokens, [&](int, int64_t t) { Prepare(how, p, t, scratch_.get()); });
  }
  const Cut cut = CutFor(parts, p.tokens);
  const int64_t product = ++num_products_;
  pool_.Run(cut.items, [&](int thread, int64_t item) {
    std::byte* prepared = scratch_.get();
    if (alone) {
      prepared += shared_bytes_ + private_bytes_ * static_cast<size_t>(thread);
      if (prepared_[thread].product != product) {
        for (int64_t t = 0; t < p.tokens; ++t) Prepare(how, p, t, prepared);
        prepared_[thread].product = product;
      }
    }
    MultiplyItem(parts, p, cut, item, prepared);
  });
}

void Multiplier::MultiplyItem(std::span<const PackedRows> parts, const Product& p, const Cut& cut,
                              int64_t item, const std::byte* prepared) const {
  // Neighbours share their rows: those stay in the cache.
  const Range tiles = Range::Share(cut.tiles, item % cut.token_blocks, cut.token_blocks);
  item /= cut.token_blocks;
  Product mine = p;
  for (const PackedRows& part : parts) {
    const int64_t groups = DivideUp(part.rows, kGroupRows), items = DivideUp(groups, cut.groups);
    if (item >= items) {
      item -= items;
      mine.out += part.rows;
      if (mine.bias != nullptr) mine.bias += part.rows;
      continue;
    }
    const Range range{item * cut.groups, std::min(groups, (item + 1) * cut.groups)};
    if (IsQuantForm(part.form)) return MultiplyQuant(part, mine, range, tiles, prepared);
    return MultiplyDense(part, mine, range, tiles, prepared);
  }
}

Multiplier::Preparation Multiplier::PreparationFor(const PackedRows& part) const {
  if (IsQuantForm(part.form)) {
    return {Input::kQuantized, part.activations, ZeroOf(part.form), GroupOf(part.form)};
  }
  const bool round = part.form == Form::kBFloat16 && kernels_.round_bfloat16 != nullptr;
  return {round ? Input::kBFloat16 : Input::kAsIs};
}

void Multiplier::Prepare(const Preparation& how, const Product& p, int64_t token,
                         std::byte* prepared) const {
  const float* x = p.x + token * p.x_stride;
  if (how.input == Input::kBFloat16) {
    kernels_.round_bfloat16(x, p.cols, reinterpret_cast<uint16_t*>(prepared) + token * p.cols);
    return;
  }
  // A tile's tokens lie side by side, block by block.
  const int64_t num_blocks = p.cols / kBlock, num_tiles = DivideUp(p.tokens, kQuantTokens);
  const int64_t tile =
      DivideUp((token + 1) * num_tiles, p.tokens) - 1;  // the one whose share it is in
  const Range tokens = Range::Share(p.tokens, tile, num_tiles);
  std::byte* out =
      prepared + (tokens.begin * num_blocks + (token - tokens.begin)) * BlockBytes(how.activations);
  kernels_.quantize[static_cast<int>(how.activations)](
      {x, out, tokens.size(), static_cast<int32_t>(num_blocks), how.zero, how.group});
}

void Multiplier::MultiplyQuant(const PackedRows& part, const Product& p, Range groups, Range tiles,
                               const std::byte* prepared) const {
  CHECK(p.col_begin % kBlock == 0 && p.cols % kBlock == 0);
  const auto kernel =
      kernels_.quant[static_cast<int>(part.activations)][static_cast<int>(part.form)];
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
    for (int64_t i = tiles.begin; i < tiles.end; ++i) {
      const Range tokens = Range::Share(p.tokens, i, num_tiles);
      tile.x = prepared + tokens.begin * num_blocks * BlockBytes(part.activations);
      tile.num_tokens = static_cast<int32_t>(tokens.size());
      tile.out = p.out + tokens.begin * p.out_stride + row;
      kernel(tile);
    }
  }
}

void Multiplier::MultiplyDense(const PackedRows& part, const Product& p, Range groups, Range tiles,
                               const std::byte* prepared) const {
  const bool pairs = part.form == Form::kBFloat16;
  const bool rounded = pairs && kernels_.round_bfloat16 != nullptr;
  CHECK(!pairs || (p.col_begin % 2 == 0 && p.cols % 2 == 0));
  const auto kernel = pairs                      ? kernels_.dense_bfloat16
                      : part.form == Form::kHalf ? kernels_.dense_half
                                                 : kernels_.dense_float;
  const int64_t column_bytes = int64_t{kGroupRows} * (part.form == Form::kFloat ? 4 : 2);
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
        static_cast<int32_t>(std::min(part.rows - row, int64_t{tile.num_groups} * kGroupRows));
    tile.bias = p.bias == nullptr ? nullptr : p.bias + row;
    for (int64_t i = tiles.begin; i < tiles.end; ++i) {
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
