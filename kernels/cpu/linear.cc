#include "kernels/cpu/linear.h"

#include <cpuid.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "common/log.h"
#include "common/status.h"
#include "fmt/format.h"
#include "kernels/cpu/dequantize.h"
#include "kernels/cpu/linear_kernels.h"
#include "kernels/cpu/linear_multiply.h"
#include "kernels/cpu/linear_pack.h"

namespace penstock::kernels::cpu {
namespace {

class Context : public LinearContext {
 public:
  Context(Mode mode, int threads, const LinearKernels& kernels)
      : mode_(mode), multiplier_(threads, kernels) {}
  absl::Status ReserveScratch(int32_t max_tokens, int32_t max_width) override;
  absl::StatusOr<std::unique_ptr<CpuWeight>> Load(std::span<const WeightSegment> segments,
                                                  WeightUse use) override;

  Multiplier& multiplier() { return multiplier_; }
  ThreadPool& pool() override { return multiplier_.pool(); }

 private:
  absl::StatusOr<PackedRows> Pack(const WeightSegment& segment, WeightUse use);

  const Mode mode_;
  PackArena arena_;
  Multiplier multiplier_;
};

class PackedWeight : public CpuWeight {
 public:
  PackedWeight(Context* context, std::vector<PackedRows> parts)
      : context_(context), parts_(std::move(parts)) {
    for (const PackedRows& part : parts_) rows += part.rows;
    cols = parts_.front().cols;
  }
  void DequantizeRow(int64_t index, float* row) const override {
    CHECK(index >= 0 && index < rows);
    const PackedRows* part = parts_.data();
    for (; index >= part->rows; ++part) index -= part->rows;
    UnpackRow(*part, index, row);
  }
  void Multiply(const float* x, int64_t x_stride, const float* bias, float* out, int32_t num_tokens,
                int32_t num_k_segments) const override;
  absl::StatusOr<std::unique_ptr<CpuWeight>> Rows(int64_t begin, int64_t count) const override;

 private:
  Context* const context_;
  std::vector<PackedRows> parts_;
};

// An embedding that is never multiplied with: rows as they came.
class RowTable : public CpuWeight {
 public:
  struct Part {
    WeightFormat format;
    int64_t rows, row_bytes;
    const uint8_t* data;
    std::shared_ptr<void> owner;
  };
  RowTable(int64_t num_cols, std::vector<Part> parts) : parts_(std::move(parts)) {
    for (const Part& part : parts_) rows += part.rows;
    cols = num_cols;
  }
  void DequantizeRow(int64_t index, float* row) const override {
    CHECK(index >= 0 && index < rows);
    const Part* part = parts_.data();
    for (; index >= part->rows; ++part) index -= part->rows;
    Dequantize(part->format,
               reinterpret_cast<const std::byte*>(part->data + index * part->row_bytes), cols, row);
  }
  void Multiply(const float*, int64_t, const float*, float*, int32_t, int32_t) const override {
    CHECK(false && "a weight loaded as kEmbedding can't be multiplied with");
  }
  absl::StatusOr<std::unique_ptr<CpuWeight>> Rows(int64_t, int64_t) const override {
    return absl::InvalidArgumentError(
        "a weight loaded as kEmbedding has no row views: load it as kEmbeddingAndLinear");
  }

 private:
  std::vector<Part> parts_;
};

// __builtin_cpu_supports doesn't know this one in every compiler.
bool HasF16c() {
  unsigned int eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

absl::Status CheckSegments(std::span<const WeightSegment> segments) {
  if (segments.empty()) return absl::InvalidArgumentError("a weight needs at least one segment");
  for (const WeightSegment& s : segments) {
    const FormatInfo& info = GetFormatInfo(s.format);
    if (s.data == nullptr || s.rows <= 0 || s.cols <= 0) {
      return absl::InvalidArgumentError(
          fmt::format("a weight segment is empty ({} x {})", s.rows, s.cols));
    }
    if (s.cols != segments.front().cols) {
      return absl::InvalidArgumentError(
          fmt::format("segments of one weight have {} and {} columns: they must agree",
                      segments.front().cols, s.cols));
    }
    if (s.cols % info.block_size != 0) {
      return absl::InvalidArgumentError(
          fmt::format("{} columns can't be stored as {}, whose blocks have {} elements", s.cols,
                      info.name, info.block_size));
    }
    const int64_t row_bytes = s.cols / info.block_size * info.block_bytes;
    if (s.row_bytes < row_bytes) {
      return absl::InvalidArgumentError(
          fmt::format("rows of {} columns of {} are {} bytes, but lie {} bytes apart", s.cols,
                      info.name, row_bytes, s.row_bytes));
    }
  }
  return absl::OkStatus();
}

absl::Status Context::ReserveScratch(int32_t max_tokens, int32_t max_width) {
  if (max_tokens <= 0 || max_width <= 0) {
    return absl::InvalidArgumentError(
        fmt::format("scratch for {} tokens of width {}", max_tokens, max_width));
  }
  if (multiplier_.Reserve(max_tokens, max_width)) return absl::OkStatus();
  return absl::ResourceExhaustedError(fmt::format(
      "no memory for the scratch of products of {} tokens by {} columns: free memory, or lower the "
      "tokens of a step",
      max_tokens, max_width));
}

absl::StatusOr<PackedRows> Context::Pack(const WeightSegment& segment, WeightUse use) {
  PackedRows packed;
  packed.form = mode_ == Mode::kFloat32
                    ? Form::kFloat
                    : FastForm(segment.format, segment.cols, use == WeightUse::kEmbeddingAndLinear);
  packed.activations = use == WeightUse::kCoarseLinear ? Activations::kInt8 : Activations::kInt16;
  packed.rows = segment.rows;
  packed.cols = segment.cols;
  packed.group_bytes = PackedGroupBytes(packed.form, packed.cols);
  const int64_t groups = (segment.rows + kGroupRows - 1) / kGroupRows;
  ASSIGN_OR_RETURN(PackArena::Block block,
                   arena_.Allocate(static_cast<size_t>(groups * packed.group_bytes)));
  packed.data = block.data;
  packed.owner = std::move(block.owner);
  pool().Run(groups, [&](int, int64_t g) {
    PackGroup(segment, packed.form, g, block.data + g * packed.group_bytes);
  });
  return packed;
}

absl::StatusOr<std::unique_ptr<CpuWeight>> Context::Load(std::span<const WeightSegment> segments,
                                                         WeightUse use) {
  RETURN_IF_ERROR(CheckSegments(segments));
  if (use == WeightUse::kEmbedding) {
    std::vector<RowTable::Part> parts;
    for (const WeightSegment& s : segments) {
      const FormatInfo& info = GetFormatInfo(s.format);
      const int64_t row_bytes = s.cols / info.block_size * info.block_bytes;
      ASSIGN_OR_RETURN(PackArena::Block block,
                       arena_.Allocate(static_cast<size_t>(s.rows * row_bytes)));
      for (int64_t r = 0; r < s.rows; ++r) {
        std::memcpy(block.data + r * row_bytes, s.data + r * s.row_bytes,
                    static_cast<size_t>(row_bytes));
      }
      parts.push_back({s.format, s.rows, row_bytes, block.data, std::move(block.owner)});
    }
    return std::make_unique<RowTable>(segments.front().cols, std::move(parts));
  }
  std::vector<PackedRows> parts;
  for (const WeightSegment& s : segments) {
    ASSIGN_OR_RETURN(PackedRows packed, Pack(s, use));
    parts.push_back(std::move(packed));
  }
  return std::make_unique<PackedWeight>(this, std::move(parts));
}

absl::StatusOr<std::unique_ptr<CpuWeight>> PackedWeight::Rows(int64_t begin, int64_t count) const {
  if (begin < 0 || count <= 0 || begin + count > rows) {
    return absl::InvalidArgumentError(
        fmt::format("rows [{}, {}) of a weight that has {}", begin, begin + count, rows));
  }
  std::vector<PackedRows> parts;
  int64_t first = 0;  // row of the weight where the part begins
  for (const PackedRows& part : parts_) {
    const int64_t from = std::max<int64_t>(begin - first, 0),
                  to = std::min(begin + count - first, part.rows);
    first += part.rows;
    if (from >= to) continue;
    if (from % kGroupRows != 0) {
      return absl::InvalidArgumentError(fmt::format(
          "a view can't begin at row {}: packed rows can be cut at multiples of {} only", begin,
          kGroupRows));
    }
    PackedRows view = part;
    view.rows = to - from;
    view.data += from / kGroupRows * part.group_bytes;
    parts.push_back(std::move(view));
  }
  return std::make_unique<PackedWeight>(context_, std::move(parts));
}

void PackedWeight::Multiply(const float* x, int64_t x_stride, const float* bias, float* out,
                            int32_t num_tokens, int32_t num_k_segments) const {
  CHECK(num_k_segments >= 1 && cols % num_k_segments == 0);
  const int64_t segment_cols = cols / num_k_segments;
  for (int64_t s = 0; s < num_k_segments; ++s) {
    Product p;
    p.x = x + s * segment_cols;
    p.x_stride = x_stride;
    p.bias = s == 0 ? bias : nullptr;
    p.out = out + s * num_tokens * rows;
    p.out_stride = rows;
    p.tokens = num_tokens;
    p.col_begin = s * segment_cols;
    p.cols = segment_cols;
    context_->multiplier().Multiply(parts_, p);
  }
}

}  // namespace

std::span<const LinearKernels> AvailableKernels() {
  static const std::vector<LinearKernels> available = [] {
    std::vector<LinearKernels> list = {kScalarKernels};
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !HasF16c()) {
      return list;
    }
    list.push_back(kAvx2Kernels);
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512vnni")) {
      return list;
    }
    list.push_back(kAvx512Kernels);
    if (!__builtin_cpu_supports("avx512bf16")) return list;
    list.push_back(kAvx512Kernels);
    list.back().name = "avx512_bf16";
    list.back().dense_bfloat16 = Avx512Bf16Dense;
    list.back().round_bfloat16 = Avx512Bf16Round;
    return list;
  }();
  return available;
}

std::unique_ptr<LinearContext> MakeLinearContext(Mode mode, int threads) {
  return MakeLinearContext(mode, threads, AvailableKernels().back());
}

std::unique_ptr<LinearContext> MakeLinearContext(Mode mode, int threads,
                                                 const LinearKernels& kernels) {
  return std::make_unique<Context>(mode, threads, kernels);
}

}  // namespace penstock::kernels::cpu
