#include "kernels/cpu/cpu_backend.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "common/status.h"
#include "kernels/cpu/activation.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/dequantize.h"
#include "kernels/cpu/norm.h"
#include "kernels/cpu/rope.h"
#include "kernels/cpu/sampler.h"
#include "kernels/random_weight.h"

namespace penstock::kernels::cpu {
namespace {

constexpr std::align_val_t kAlignment{64};

class CpuBuffer : public Buffer {
 public:
  CpuBuffer(void* memory, size_t size) {
    data = memory;
    bytes = size;
  }
  ~CpuBuffer() override { ::operator delete(data, kAlignment); }
};

const CpuWeight& AsCpu(const Weight& weight) { return static_cast<const CpuWeight&>(weight); }

class CpuBackend : public Backend {
 public:
  explicit CpuBackend(const CpuOptions& options)
      : mode_(options.mode),
        linear_(MakeLinearContext(options.mode, options.threads)),
        cpu_{&KernelsFor(options.isa), &linear_->pool()},
        sampler_(cpu_) {}

  std::string_view name() const override { return "cpu"; }
  DType activation_dtype() const override { return DType::kF32; }
  bool batch_invariant() const override { return mode_ == Mode::kFloat32; }
  bool needs_weights() const override { return true; }

  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(size_t bytes) override {
    void* memory = ::operator new(bytes, kAlignment, std::nothrow);
    if (memory == nullptr) {
      return ResourceExhausted("out of memory: {} bytes were asked for; lower the KV cache's size",
                               bytes);
    }
    // Touched now, so that too little memory shows at start and not in the middle of serving.
    std::memset(memory, 0, bytes);
    return std::make_unique<CpuBuffer>(memory, bytes);
  }

  absl::StatusOr<std::unique_ptr<Weight>> LoadWeight(std::span<const WeightSegment> segments,
                                                     WeightUse use) override {
    ASSIGN_OR_RETURN(std::unique_ptr<CpuWeight> weight, linear_->Load(segments, use));
    return std::unique_ptr<Weight>(std::move(weight));
  }

  // Made row-major as a file would have it, then packed like any other.
  absl::StatusOr<std::unique_ptr<Weight>> RandomWeight(WeightFormat format, int64_t rows,
                                                       int64_t cols, WeightUse use,
                                                       uint64_t seed) override {
    const FormatInfo& info = GetFormatInfo(format);
    if (info.code_bits != 0) {
      return InvalidArgument("random weights in {}: only F32, F16 and BF16 are made", info.name);
    }
    const int64_t row_bytes = cols * info.block_bytes;
    const std::unique_ptr<std::byte[]> data(new (std::nothrow) std::byte[rows * row_bytes]);
    if (data == nullptr) {
      return ResourceExhausted("no memory for {} MiB of random weights: use a smaller model",
                               (rows * row_bytes) >> 20);
    }
    ForEach(cpu_, rows, rows * cols, [&](int, int64_t row) {
      std::byte* out = data.get() + row * row_bytes;
      for (int64_t i = 0; i < cols; ++i, out += info.block_bytes) {
        const float value = RandomWeightValue(seed, static_cast<uint64_t>(row * cols + i));
        if (format == WeightFormat::kF32) {
          std::memcpy(out, &value, sizeof(value));
          continue;
        }
        const uint16_t bits =
            format == WeightFormat::kF16 ? FloatToHalf(value) : FloatToBFloat16(value);
        std::memcpy(out, &bits, sizeof(bits));
      }
    });
    const WeightSegment segment{
        .format = format, .data = data.get(), .rows = rows, .cols = cols, .row_bytes = row_bytes};
    return LoadWeight({&segment, 1}, use);
  }

  absl::StatusOr<std::unique_ptr<Weight>> WeightRows(const Weight& weight, int64_t begin,
                                                     int64_t count) override {
    ASSIGN_OR_RETURN(std::unique_ptr<CpuWeight> rows, AsCpu(weight).Rows(begin, count));
    return std::unique_ptr<Weight>(std::move(rows));
  }

  absl::Status Reserve(const ReserveParams& p) override {
    const auto max_tokens = static_cast<size_t>(p.max_tokens);
    token_ranges_.resize(max_tokens);
    const size_t reduced = max_tokens * p.max_width;
    const size_t logits = static_cast<size_t>(p.max_logits) * p.vocab_size;
    // Not zeroed, so that one rank alone, which needs none, pays for none.
    exchange_ = std::make_unique_for_overwrite<float[]>(std::max(reduced, logits));
    sampler_.Reserve(p.vocab_size);
    return linear_->ReserveScratch(p.max_tokens, p.max_width);
  }

  absl::Status BindTokens(TokenTable table, int32_t slot, std::span<const int32_t> ids) override {
    std::copy(ids.begin(), ids.end(), table.ids + slot * table.stride);
    return absl::OkStatus();
  }

  absl::Status CopyPages(const CopyPagesParams& p) override {
    const auto num_layers = static_cast<int64_t>(p.layers.size());
    const auto num_copies = static_cast<int64_t>(p.copies.size());
    const int64_t work = 2 * num_layers * num_copies * p.page_elements;
    ForEach(cpu_, num_layers, work, [&](int, int64_t i) {
      const KvLayer& layer = p.layers[i];
      const auto bytes = static_cast<int64_t>(DTypeSize(layer.dtype)) * p.page_elements;
      for (void* pages : {layer.k, layer.v}) {
        auto* base = static_cast<std::byte*>(pages);
        for (const PageCopy& copy : p.copies) {
          std::memcpy(base + copy.to * bytes, base + copy.from * bytes, bytes);
        }
      }
    });
    return absl::OkStatus();
  }

  absl::Status Upload(const Buffer& buffer, const void* data, size_t bytes) override {
    std::memcpy(buffer.data, data, bytes);
    return absl::OkStatus();
  }

  absl::Status Embed(const EmbedParams& p) override {
    const CpuWeight& table = AsCpu(*p.table);
    const BatchRows& batch = *p.batch;
    auto* out = static_cast<float*>(p.out);
    ForEach(cpu_, batch.num_tokens, batch.num_tokens * table.cols, [&](int, int64_t t) {
      const int32_t* ids = p.tokens.ids + batch.slot_of_token[t] * p.tokens.stride;
      float* row = out + t * table.cols;
      table.DequantizeRow(ids[batch.position_of_token[t]], row);
      if (p.scale == 1.0f) return;
      for (int64_t i = 0; i < table.cols; ++i) row[i] *= p.scale;
    });
    return absl::OkStatus();
  }

  absl::Status AddRmsNorm(const AddRmsNormParams& p) override {
    return cpu::AddRmsNorm(cpu_, p, exchange_.get());
  }

  absl::Status Linear(const LinearParams& p) override {
    AsCpu(*p.weight).Multiply(static_cast<const float*>(p.x), p.x_stride, p.bias,
                              static_cast<float*>(p.out), p.num_tokens, p.num_k_segments);
    return absl::OkStatus();
  }

  absl::Status RopeKvWrite(const RopeKvWriteParams& p) override {
    return cpu::RopeKvWrite(cpu_, p);
  }

  absl::Status Attention(const AttentionParams& p) override {
    return cpu::Attention(cpu_, p, token_ranges_);
  }

  absl::Status GatedActivation(const GatedActivationParams& p) override {
    cpu::GatedActivation(cpu_, p);
    return absl::OkStatus();
  }

  absl::Status GatherRows(const GatherRowsParams& p) override {
    const int64_t hidden = p.hidden;
    for (int32_t i = 0; i < p.count; ++i) {
      std::memcpy(static_cast<float*>(p.out) + i * hidden,
                  static_cast<const float*>(p.x) + p.index[i] * hidden, hidden * sizeof(float));
    }
    return absl::OkStatus();
  }

  absl::Status Logits(const LogitsParams& p) override {
    const CpuWeight& head = AsCpu(*p.head);
    float* shard = p.group == nullptr ? p.out : exchange_.get();
    head.Multiply(static_cast<const float*>(p.x), head.cols, /*bias=*/nullptr, shard, p.count,
                  /*num_k_segments=*/1);
    if (p.group == nullptr) return absl::OkStatus();
    return p.group->AllGatherColumns(shard, p.count, head.rows, p.out);
  }

  absl::Status Sample(const SampleParams& p) override { return sampler_.Sample(p); }

 private:
  const Mode mode_;
  const std::unique_ptr<LinearContext> linear_;  // owns the threads of all ops
  const Cpu cpu_;
  Sampler sampler_;
  std::vector<TokenRange> token_ranges_;
  std::unique_ptr<float[]> exchange_;  // what is given to or taken from the group
};

}  // namespace

std::unique_ptr<Backend> MakeCpuBackend(const CpuOptions& options) {
  return std::make_unique<CpuBackend>(options);
}

}  // namespace penstock::kernels::cpu
