#include "kernels/cpu/linear_pack.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "absl/status/status.h"
#include "common/log.h"
#include "fmt/format.h"
#include "kernels/cpu/dequantize.h"

namespace penstock::kernels::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kRegion = size_t{32} << 20;

size_t RoundUp(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Calls visit(layout) with the QuantLayout of a quantised form.
template <class Visitor>
auto WithLayout(Form form, Visitor visit) {
  switch (form) {
    case Form::kU4Half:
      return visit(U4Half());
    case Form::kU4HalfMin:
      return visit(U4HalfMin());
    case Form::kU4FloatMin:
      return visit(U4FloatMin());
    case Form::kU8Half:
      return visit(U8Half());
    case Form::kU8HalfMin:
      return visit(U8HalfMin());
    case Form::kU8FloatMin:
      return visit(U8FloatMin());
    case Form::kU8Float16:
      return visit(U8Float16());
    default:
      break;
  }
  CHECK(false && "not a quantised form");
  return visit(U4Half());
}

template <class Layout>
void PutScale(uint8_t* scales, int64_t row, float value) {
  if constexpr (Layout::kHalfScales) {
    const uint16_t half = FloatToHalf(value);
    std::memcpy(scales + 2 * row, &half, sizeof(half));
  } else {
    std::memcpy(scales + 4 * row, &value, sizeof(value));
  }
}

template <class Layout>
float GetScale(const uint8_t* scales, int64_t row) {
  if constexpr (Layout::kHalfScales) {
    uint16_t half;
    std::memcpy(&half, scales + 2 * row, sizeof(half));
    return HalfToFloat(half);
  } else {
    float value;
    std::memcpy(&value, scales + 4 * row, sizeof(value));
    return value;
  }
}

// Where the code of a column lies, and whether in the high half of its byte.
template <class Layout>
int CodeByte(int row, int column) {
  return (Layout::kBits == 4 ? column % 16 : column) / 4 * 64 + row * 4 + column % 4;
}

template <class Layout>
void PackBlock(const uint8_t* codes, const float* scales, const float* minimums, int64_t block,
               int row, uint8_t* group) {
  uint8_t* out = group + Layout::CodeOffset(block);
  for (int i = 0; i < kBlock; ++i) {
    const int shift = Layout::kBits == 4 && i >= 16 ? 4 : 0;
    out[CodeByte<Layout>(row, i)] |= static_cast<uint8_t>(codes[i] << shift);
  }
  for (int s = 0; s < Layout::kScalesPerBlock; ++s) {
    PutScale<Layout>(group + Layout::ScaleOffset(block), s * kGroupRows + row, scales[s]);
    if constexpr (Layout::kMinimum)
      PutScale<Layout>(group + Layout::MinimumOffset(block), row, minimums[s]);
  }
}

template <class Layout>
void UnpackBlock(const uint8_t* group, int64_t block, int row, float* out) {
  const uint8_t* codes = group + Layout::CodeOffset(block);
  for (int i = 0; i < kBlock; ++i) {
    const int byte = codes[CodeByte<Layout>(row, i)];
    const int code = Layout::kBits == 8 ? byte : i < 16 ? byte & 15 : byte >> 4;
    const int scale = i / Layout::kGroup * kGroupRows + row;
    out[i] = GetScale<Layout>(group + Layout::ScaleOffset(block), scale) *
             static_cast<float>(code - Layout::kZero);
    if constexpr (Layout::kMinimum)
      out[i] += GetScale<Layout>(group + Layout::MinimumOffset(block), row);
  }
}

template <class Layout>
void PackQuantRow(const WeightSegment& segment, const std::byte* data, int row, uint8_t* group) {
  const FormatInfo& info = GetFormatInfo(segment.format);
  const int64_t groups_per_block = kBlock / info.group_size;
  uint8_t codes[kMaxBlockSize];
  float scales[kMaxBlockSize / 16], minimums[kMaxBlockSize / 16];
  for (int64_t k = 0; k < segment.cols; k += info.block_size, data += info.block_bytes) {
    DecodeBlock(segment.format, data, codes, scales, minimums);
    // Forms have a zero of their own where a format's differs (Q5_0).
    for (int i = 0; i < info.block_size; ++i)
      codes[i] = static_cast<uint8_t>(codes[i] - info.zero + Layout::kZero);
    for (int64_t i = 0; i < info.block_size / kBlock; ++i) {
      PackBlock<Layout>(codes + i * kBlock, scales + i * groups_per_block,
                        minimums + i * groups_per_block, k / kBlock + i, row, group);
    }
  }
}

// Byte offset in a group of a dense form's element, and its size.
int64_t DenseOffset(Form form, int row, int64_t column) {
  switch (form) {
    case Form::kFloat:
      return (column * kGroupRows + row) * 4;
    case Form::kHalf:
      return (column * kGroupRows + row) * 2;
    default:
      return ((column / 2 * kGroupRows + row) * 2 + column % 2) * 2;
  }
}

void PackDenseRow(Form form, const float* values, int64_t cols, int row, uint8_t* group) {
  for (int64_t k = 0; k < cols; ++k) {
    uint8_t* out = group + DenseOffset(form, row, k);
    if (form == Form::kFloat) {
      std::memcpy(out, &values[k], 4);
    } else {
      const uint16_t bits =
          form == Form::kHalf ? FloatToHalf(values[k]) : FloatToBFloat16(values[k]);
      std::memcpy(out, &bits, 2);
    }
  }
}

void UnpackDenseRow(Form form, const uint8_t* group, int64_t cols, int row, float* values) {
  for (int64_t k = 0; k < cols; ++k) {
    const uint8_t* in = group + DenseOffset(form, row, k);
    if (form == Form::kFloat) {
      std::memcpy(&values[k], in, 4);
    } else {
      uint16_t bits;
      std::memcpy(&bits, in, 2);
      values[k] = form == Form::kHalf ? HalfToFloat(bits) : BFloat16ToFloat(bits);
    }
  }
}

}  // namespace

absl::StatusOr<PackArena::Block> PackArena::Allocate(size_t bytes) {
  bytes = RoundUp(bytes, 64);
  if (used_ + bytes > size_) {
    const size_t size = RoundUp(std::max(bytes, kRegion), kHugePage);
    void* map =
        mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) {
      return absl::ResourceExhaustedError(
          fmt::format("no memory for {} MiB of packed weights ({}): use a smaller or more "
                      "quantised model, or free memory",
                      size >> 20, std::strerror(errno)));
    }
    const auto begin = reinterpret_cast<uintptr_t>(map);
    uint8_t* data = static_cast<uint8_t*>(map) + (RoundUp(begin, kHugePage) - begin);
    madvise(data, size, MADV_HUGEPAGE);  // a wish; refusal does no harm
    region_ =
        std::shared_ptr<uint8_t>(data, [map, size](uint8_t*) { munmap(map, size + kHugePage); });
    size_ = size;
    used_ = 0;
  }
  Block block{region_.get() + used_, region_};
  used_ += bytes;
  return block;
}

Form FastForm(WeightFormat format, int64_t cols, bool exact) {
  // bfloat16 weights are multiplied in pairs of columns.
  const Form narrow = cols % 2 == 0 ? Form::kBFloat16 : Form::kFloat;
  switch (format) {
    case WeightFormat::kF32:
      return exact ? Form::kFloat : narrow;
    case WeightFormat::kF16:
      return exact ? Form::kHalf : narrow;
    case WeightFormat::kBF16:
      return narrow;
    case WeightFormat::kQ4_0:
      return Form::kU4Half;
    case WeightFormat::kQ4_1:
      return Form::kU4HalfMin;
    case WeightFormat::kQ5_0:
    case WeightFormat::kQ8_0:
      return Form::kU8Half;
    case WeightFormat::kQ5_1:
      return Form::kU8HalfMin;
    case WeightFormat::kQ4_K:
      return Form::kU4FloatMin;
    case WeightFormat::kQ5_K:
      return Form::kU8FloatMin;
    case WeightFormat::kQ6_K:
      return Form::kU8Float16;
  }
  CHECK(false && "unknown format");
  return Form::kFloat;
}

int64_t PackedGroupBytes(Form form, int64_t cols) {
  switch (form) {
    case Form::kFloat:
      return cols * kGroupRows * 4;
    case Form::kHalf:
      return cols * kGroupRows * 2;
    case Form::kBFloat16:
      return (cols + 31) / 32 * 32 * kGroupRows * 2;
    default:
      return WithLayout(form, [&](auto layout) { return layout.GroupBytes(cols / kBlock); });
  }
}

int32_t ZeroOf(Form form) {
  return WithLayout(form, [](auto layout) { return int32_t{layout.kZero}; });
}

int32_t GroupOf(Form form) {
  return WithLayout(form, [](auto layout) { return int32_t{layout.kGroup}; });
}

void PackGroup(const WeightSegment& segment, Form form, int64_t group, uint8_t* out) {
  const int64_t begin = group * kGroupRows, end = std::min(segment.rows, begin + kGroupRows);
  std::vector<float> values;
  for (int64_t r = begin; r < end; ++r) {
    const std::byte* data = segment.data + r * segment.row_bytes;
    const int lane = static_cast<int>(r - begin);
    if (IsQuantForm(form)) {
      WithLayout(form,
                 [&](auto layout) { PackQuantRow<decltype(layout)>(segment, data, lane, out); });
    } else {
      values.resize(static_cast<size_t>(segment.cols));
      Dequantize(segment.format, data, segment.cols, values.data());
      PackDenseRow(form, values.data(), segment.cols, lane, out);
    }
  }
}

void UnpackRow(const PackedRows& packed, int64_t index, float* row) {
  const uint8_t* group = packed.data + index / kGroupRows * packed.group_bytes;
  const int lane = static_cast<int>(index % kGroupRows);
  if (!IsQuantForm(packed.form)) return UnpackDenseRow(packed.form, group, packed.cols, lane, row);
  WithLayout(packed.form, [&](auto layout) {
    for (int64_t b = 0; b < packed.cols / kBlock; ++b) {
      UnpackBlock<decltype(layout)>(group, b, lane, row + b * kBlock);
    }
  });
}

}  // namespace penstock::kernels::cpu
