#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "common/log.h"
#include "kernels/cpu/dequantize.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/sampler.h"

namespace penstock::kernels::cuda {
namespace {

constexpr size_t kUploadBytes = size_t{16} << 20;  // of each of the two upload buffers
// Decode batches for which GEMMs are chosen exactly.
constexpr int32_t kExactTokens[] = {1, 2, 4, 8, 16, 32, 64, 128, 256};

// Device memory, or pinned host memory.
class CudaBuffer : public Buffer {
 public:
  CudaBuffer(void* memory, size_t size, bool on_host) : on_host_(on_host) {
    data = memory;
    bytes = size;
  }
  ~CudaBuffer() override {
    if (on_host_) {
      cudaFreeHost(data);
    } else {
      cudaFree(data);
    }
  }

 private:
  const bool on_host_;
};

absl::StatusOr<std::unique_ptr<CudaBuffer>> MakeBuffer(size_t bytes, bool on_host = false) {
  void* memory = nullptr;
  const size_t size = std::max<size_t>(bytes, 16);
  const cudaError_t error = on_host ? cudaMallocHost(&memory, size) : cudaMalloc(&memory, size);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not sticky
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    return ResourceExhausted(
        "{} MiB of {} memory were asked for, {} MiB of the GPU are free: lower "
        "--kv-cache-memory-mb, --max-num-batched-tokens or --max-num-seqs",
        size >> 20, on_host ? "pinned host" : "GPU", free >> 20);
  }
  RETURN_IF_ERROR(CudaStatus(error, "cudaMalloc"));
  return std::make_unique<CudaBuffer>(memory, size, on_host);
}

// [rows, cols] bf16, row-major; a view does not own it.
class CudaWeight : public Weight {
 public:
  CudaWeight(const __nv_bfloat16* weight_data, int64_t num_rows, int64_t num_cols,
             std::unique_ptr<Buffer> owned)
      : data(weight_data), owned_(std::move(owned)) {
    rows = num_rows;
    cols = num_cols;
  }
  const __nv_bfloat16* const data;

 private:
  const std::unique_ptr<Buffer> owned_;
};

const CudaWeight& AsCuda(const Weight& weight) { return static_cast<const CudaWeight&>(weight); }

// Hands out pieces of a pinned block and of its mirror on the device; one copy moves all.
class Staging {
 public:
  absl::Status Allocate(size_t bytes) {
    ASSIGN_OR_RETURN(host_, MakeBuffer(bytes, /*on_host=*/true));
    ASSIGN_OR_RETURN(device_, MakeBuffer(bytes));
    return absl::OkStatus();
  }
  void Clear() { used_ = sent_ = 0; }
  // Room for `count` Ts on the host; nullptr when it is full.
  template <typename T>
  std::span<T> Take(size_t count) {
    const size_t begin = (used_ + 15) & ~size_t{15};
    if (begin + count * sizeof(T) > host_->bytes) return {};
    used_ = begin + count * sizeof(T);
    return {reinterpret_cast<T*>(static_cast<std::byte*>(host_->data) + begin), count};
  }
  template <typename T>
  T* OnDevice(std::span<T> host) const {
    return reinterpret_cast<T*>(
        static_cast<std::byte*>(device_->data) +
        (reinterpret_cast<std::byte*>(host.data()) - static_cast<std::byte*>(host_->data)));
  }
  // Copies what was taken since the last Send.
  absl::Status Send(cudaStream_t stream) {
    if (used_ == sent_) return absl::OkStatus();
    PENSTOCK_CUDA(cudaMemcpyAsync(static_cast<std::byte*>(device_->data) + sent_,
                                  static_cast<std::byte*>(host_->data) + sent_, used_ - sent_,
                                  cudaMemcpyHostToDevice, stream));
    sent_ = used_;
    return absl::OkStatus();
  }

 private:
  std::unique_ptr<CudaBuffer> host_, device_;
  size_t used_ = 0, sent_ = 0;
};

class CudaBackend : public Backend {
 public:
  explicit CudaBackend(const CudaOptions& options) : options_(options) {}
  ~CudaBackend() override {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  absl::Status Init();

  std::string_view name() const override { return "cuda"; }
  DType activation_dtype() const override { return DType::kBF16; }
  bool batch_invariant() const override { return false; }
  bool needs_weights() const override { return true; }

  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(size_t bytes) override {
    ASSIGN_OR_RETURN(std::unique_ptr<CudaBuffer> buffer, MakeBuffer(bytes));
    PENSTOCK_CUDA(cudaMemsetAsync(buffer->data, 0, buffer->bytes, stream_));
    PENSTOCK_CUDA(cudaStreamSynchronize(stream_));
    return std::unique_ptr<Buffer>(std::move(buffer));
  }
  absl::Status Upload(const Buffer& buffer, const void* data, size_t bytes) override {
    PENSTOCK_CUDA(cudaMemcpyAsync(buffer.data, data, bytes, cudaMemcpyHostToDevice, stream_));
    PENSTOCK_CUDA(cudaStreamSynchronize(stream_));
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<Weight>> LoadWeight(std::span<const WeightSegment> segments,
                                                     WeightUse use) override;
  absl::StatusOr<std::unique_ptr<Weight>> RandomWeight(WeightFormat, int64_t rows, int64_t cols,
                                                       WeightUse use, uint64_t seed) override;
  absl::StatusOr<std::unique_ptr<Weight>> WeightRows(const Weight& weight, int64_t begin,
                                                     int64_t count) override {
    const CudaWeight& whole = AsCuda(weight);
    Seen(count, whole.cols, WeightUse::kLinear);
    return std::make_unique<CudaWeight>(whole.data + begin * whole.cols, count, whole.cols,
                                        nullptr);
  }

  absl::Status Reserve(const ReserveParams& params) override;
  absl::Status BindTokens(TokenTable table, int32_t slot, std::span<const int32_t> ids) override {
    // From pageable memory: the ids have been read when this returns.
    PENSTOCK_CUDA(cudaMemcpyAsync(table.ids + slot * table.stride, ids.data(), ids.size_bytes(),
                                  cudaMemcpyHostToDevice, stream_));
    return absl::OkStatus();
  }
  absl::StatusOr<BatchRows> BeginStep(const BatchRows& rows) override;

  absl::Status Embed(const EmbedParams& p) override {
    const CudaWeight& table = AsCuda(*p.table);
    return cuda::Embed(stream_, table.data, table.rows, table.cols, p);
  }
  absl::Status AddRmsNorm(const AddRmsNormParams& p) override {
    return cuda::AddRmsNorm(stream_, p);
  }
  absl::Status Linear(const LinearParams& p) override {
    return Multiply(*p.weight, p.x, p.x_stride, p.bias, p.out, p.num_tokens, LinearOutput::kBf16);
  }
  absl::Status RopeKvWrite(const RopeKvWriteParams& p) override {
    return cuda::RopeKvWrite(stream_, p);
  }
  absl::Status Attention(const AttentionParams& p) override { return attention_->Run(p, stream_); }
  absl::Status GatedActivation(const GatedActivationParams& p) override {
    return cuda::GatedActivation(stream_, p);
  }
  absl::Status GatherRows(const GatherRowsParams& p) override;
  absl::Status Logits(const LogitsParams& p) override {
    return Multiply(*p.head, p.x, p.head->cols, nullptr, p.out, p.count, LinearOutput::kFloat);
  }
  absl::Status Sample(const SampleParams& p) override;
  absl::Status Synchronize() override;

 private:
  // Results of a Sample on their way to the caller's memory.
  struct PendingSample {
    int32_t begin, count;
    int32_t* ids;
    SampledLogprobs* logprobs;  // null: none were asked for
  };

  void Seen(int64_t rows, int64_t cols, WeightUse use) {
    if (use != WeightUse::kEmbedding) linears_[{rows, cols}] = true;
  }
  absl::Status Multiply(const Weight& weight, const void* x, int64_t x_stride, const float* bias,
                        void* out, int32_t num_tokens, LinearOutput output);
  absl::Status UploadRow(const WeightSegment& segment, int64_t row, int64_t count,
                         __nv_bfloat16* out);
  absl::Status StagePages(const BatchRows& rows);

  const CudaOptions options_;
  cudaStream_t stream_ = nullptr;
  std::map<std::pair<int64_t, int64_t>, bool> linears_;  // [N, K] of what was loaded
  std::unique_ptr<CudaBuffer> upload_host_, upload_device_;
  std::unique_ptr<class Linear> linear_;
  std::unique_ptr<class Attention> attention_;
  SamplerPlan sampler_;
  ReserveParams reserved_;

  Staging staging_;
  std::unique_ptr<CudaBuffer> page_table_;
  std::vector<int32_t> known_pages_;  // what the device's page table holds
  std::vector<PageEntry> new_pages_;
  std::unique_ptr<CudaBuffer> sampler_workspace_, ids_, logprobs_, host_ids_, host_logprobs_;
  std::vector<PendingSample> pending_;
  int32_t num_sampled_ = 0;
};

absl::Status CudaBackend::Init() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || options_.device >= count) {
    cudaGetLastError();
    return InvalidArgument(
        "no GPU {}: {} ({} found). Check nvidia-smi and CUDA_VISIBLE_DEVICES, or serve with "
        "--device cpu",
        options_.device, cudaGetErrorString(error), count);
  }
  PENSTOCK_CUDA(cudaSetDevice(options_.device));
  cudaDeviceProp device{};
  PENSTOCK_CUDA(cudaGetDeviceProperties(&device, options_.device));
  if (device.major < 8) {
    return Unimplemented("{} has compute capability {}.{}: 8.0 or newer is needed (A100 and later)",
                         device.name, device.major, device.minor);
  }
  PENSTOCK_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  ASSIGN_OR_RETURN(upload_host_, MakeBuffer(kUploadBytes, /*on_host=*/true));
  ASSIGN_OR_RETURN(upload_device_, MakeBuffer(kUploadBytes));
  ASSIGN_OR_RETURN(linear_, Linear::Create({.cache_directory = options_.cache_directory}));
  spdlog::info("msg=\"GPU\" name=\"{}\" memory_mb={} multiprocessors={}", device.name,
               device.totalGlobalMem >> 20, device.multiProcessorCount);
  return absl::OkStatus();
}

// `count` rows from `row`, converted to bf16 at out.
absl::Status CudaBackend::UploadRow(const WeightSegment& segment, int64_t row, int64_t count,
                                    __nv_bfloat16* out) {
  PENSTOCK_CUDA(cudaStreamSynchronize(stream_));  // the buffers are free
  const std::byte* source = segment.data + row * segment.row_bytes;
  const int64_t values = count * segment.cols;
  DType type = DType::kF32;
  if (segment.format == WeightFormat::kF16) type = DType::kF16;
  if (segment.format == WeightFormat::kBF16) type = DType::kBF16;
  const size_t row_bytes = segment.cols * DTypeSize(type);
  for (int64_t r = 0; r < count; ++r, source += segment.row_bytes) {
    auto* to = static_cast<std::byte*>(upload_host_->data) + r * row_bytes;
    if (cpu::IsQuantized(segment.format)) {
      cpu::Dequantize(segment.format, source, segment.cols, reinterpret_cast<float*>(to));
    } else {
      std::memcpy(to, source, row_bytes);
    }
  }
  void* to = type == DType::kBF16 ? static_cast<void*>(out) : upload_device_->data;
  PENSTOCK_CUDA(
      cudaMemcpyAsync(to, upload_host_->data, count * row_bytes, cudaMemcpyHostToDevice, stream_));
  if (type == DType::kBF16) return absl::OkStatus();
  return ConvertToBf16(stream_, upload_device_->data, type, out, values);
}

absl::StatusOr<std::unique_ptr<Weight>> CudaBackend::LoadWeight(
    std::span<const WeightSegment> segments, WeightUse use) {
  int64_t rows = 0;
  const int64_t cols = segments.front().cols;
  for (const WeightSegment& segment : segments) rows += segment.rows;
  ASSIGN_OR_RETURN(std::unique_ptr<CudaBuffer> buffer,
                   MakeBuffer(rows * cols * sizeof(__nv_bfloat16)));
  auto* out = buffer->as<__nv_bfloat16>();
  const auto rows_a_copy = static_cast<int64_t>(kUploadBytes / (cols * sizeof(float)));
  for (const WeightSegment& segment : segments) {
    for (int64_t row = 0; row < segment.rows; row += rows_a_copy) {
      const int64_t count = std::min(rows_a_copy, segment.rows - row);
      RETURN_IF_ERROR(UploadRow(segment, row, count, out));
      out += count * cols;
    }
  }
  PENSTOCK_CUDA(cudaStreamSynchronize(stream_));
  Seen(rows, cols, use);
  const auto* data = buffer->as<__nv_bfloat16>();
  return std::make_unique<CudaWeight>(data, rows, cols, std::move(buffer));
}

absl::StatusOr<std::unique_ptr<Weight>> CudaBackend::RandomWeight(WeightFormat, int64_t rows,
                                                                  int64_t cols, WeightUse use,
                                                                  uint64_t seed) {
  ASSIGN_OR_RETURN(std::unique_ptr<CudaBuffer> buffer,
                   MakeBuffer(rows * cols * sizeof(__nv_bfloat16)));
  auto* data = buffer->as<__nv_bfloat16>();
  RETURN_IF_ERROR(FillRandomWeight(stream_, data, rows * cols, seed, 0));
  Seen(rows, cols, use);
  return std::make_unique<CudaWeight>(data, rows, cols, std::move(buffer));
}

absl::Status CudaBackend::Reserve(const ReserveParams& p) {
  reserved_ = p;
  std::vector<PlannedLinear> linears;
  for (const auto& [shape, seen] : linears_) {
    const bool head = shape.first == p.vocab_size;
    linears.push_back({.shape = {.n = shape.first,
                                 .k = shape.second,
                                 .output = head ? LinearOutput::kFloat : LinearOutput::kBf16},
                       .max_tokens = head ? p.max_logits : p.max_tokens});
  }
  RETURN_IF_ERROR(linear_->Plan(linears, kExactTokens));
  ASSIGN_OR_RETURN(attention_, Attention::Create({.num_heads = p.num_heads,
                                                  .num_kv_heads = p.num_kv_heads,
                                                  .head_size = p.head_size,
                                                  .page_size = p.page_size,
                                                  .max_rows = p.max_rows,
                                                  .max_tokens = p.max_tokens}));
  ASSIGN_OR_RETURN(sampler_, PlanSampler(p.vocab_size));
  const size_t num_pages = static_cast<size_t>(options_.num_slots) * options_.max_pages_per_slot;
  known_pages_.assign(num_pages, 0);
  ASSIGN_OR_RETURN(page_table_, MakeBuffer(num_pages * sizeof(int32_t)));
  PENSTOCK_CUDA(cudaMemset(page_table_->data, 0, page_table_->bytes));
  // Rows, tokens, new pages, and for each output an index, a sample row and its lists.
  RETURN_IF_ERROR(staging_.Allocate((size_t{64} << 10) + num_pages * sizeof(PageEntry) +
                                    p.max_tokens * (size_t{256} + sizeof(DeviceSampleRow)) +
                                    (size_t{1} << 20)));
  ASSIGN_OR_RETURN(sampler_workspace_, MakeBuffer(sampler_.workspace_bytes_per_row * p.max_logits));
  ASSIGN_OR_RETURN(ids_, MakeBuffer(p.max_tokens * sizeof(int32_t)));
  ASSIGN_OR_RETURN(host_ids_, MakeBuffer(p.max_tokens * sizeof(int32_t), true));
  ASSIGN_OR_RETURN(logprobs_, MakeBuffer(p.max_tokens * sizeof(SampledLogprobs)));
  ASSIGN_OR_RETURN(host_logprobs_, MakeBuffer(p.max_tokens * sizeof(SampledLogprobs), true));
  return absl::OkStatus();
}

// Lists the pages of the batch's slots that the device does not know yet.
absl::Status CudaBackend::StagePages(const BatchRows& rows) {
  const int64_t stride = rows.page_table_stride;
  new_pages_.clear();
  for (int32_t r = 0; r < rows.num_rows; ++r) {
    const int32_t slot = rows.slot_of_token[rows.token_begin[r]];
    const int32_t count = (rows.context_len[r] + reserved_.page_size - 1) / reserved_.page_size;
    const int32_t* pages = rows.page_table + slot * stride;
    int32_t* known = known_pages_.data() + slot * stride;
    for (int32_t i = 0; i < count; ++i) {
      if (known[i] == pages[i]) continue;
      known[i] = pages[i];
      new_pages_.push_back({.slot = slot, .index = i, .page = pages[i]});
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<BatchRows> CudaBackend::BeginStep(const BatchRows& rows) {
  staging_.Clear();
  pending_.clear();
  num_sampled_ = 0;
  RETURN_IF_ERROR(StagePages(rows));
  auto stage = [&](const int32_t* from, int32_t count) {
    const std::span<int32_t> host = staging_.Take<int32_t>(count);
    std::copy_n(from, count, host.data());
    return staging_.OnDevice(host);
  };
  BatchRows device = rows;
  device.token_begin = stage(rows.token_begin, rows.num_rows + 1);
  device.context_len = stage(rows.context_len, rows.num_rows);
  device.slot_of_token = stage(rows.slot_of_token, rows.num_tokens);
  device.position_of_token = stage(rows.position_of_token, rows.num_tokens);
  device.page_table = page_table_->as<int32_t>();
  const std::span<PageEntry> entries = staging_.Take<PageEntry>(new_pages_.size());
  std::copy(new_pages_.begin(), new_pages_.end(), entries.begin());
  RETURN_IF_ERROR(staging_.Send(stream_));
  if (!entries.empty()) {
    RETURN_IF_ERROR(ScatterPages(stream_, staging_.OnDevice(entries),
                                 static_cast<int32_t>(entries.size()), page_table_->as<int32_t>(),
                                 rows.page_table_stride));
  }
  RETURN_IF_ERROR(attention_->Plan(device, stream_));
  return device;
}

absl::Status CudaBackend::Multiply(const Weight& weight, const void* x, int64_t x_stride,
                                   const float* bias, void* out, int32_t num_tokens,
                                   LinearOutput output) {
  const CudaWeight& matrix = AsCuda(weight);
  return linear_->Run({.shape = {.n = matrix.rows, .k = matrix.cols, .output = output},
                       .num_tokens = num_tokens,
                       .x = static_cast<const __nv_bfloat16*>(x),
                       .x_stride = x_stride,
                       .weight = matrix.data,
                       .bias = bias,
                       .out = out,
                       .out_stride = matrix.rows},
                      stream_);
}

absl::Status CudaBackend::GatherRows(const GatherRowsParams& p) {
  const std::span<int32_t> index = staging_.Take<int32_t>(p.count);
  if (index.empty()) return Internal("no staging memory for {} rows", p.count);
  std::copy_n(p.index, p.count, index.data());
  RETURN_IF_ERROR(staging_.Send(stream_));
  GatherRowsParams device = p;
  device.index = staging_.OnDevice(index);
  return cuda::GatherRows(stream_, device);
}

absl::Status CudaBackend::Sample(const SampleParams& p) {
  const std::span<DeviceSampleRow> rows = staging_.Take<DeviceSampleRow>(p.count);
  size_t side_size = 0;
  bool any_logprobs = false;
  for (int32_t i = 0; i < p.count; ++i) {
    const SamplingParams& params = *p.rows[i].params;
    side_size += params.stop_ids.size() + 2 * params.logit_bias.size();
    any_logprobs = any_logprobs || p.rows[i].num_top >= 0;
  }
  const std::span<int32_t> side = staging_.Take<int32_t>(side_size + 1);
  if (rows.empty() || side.empty()) {
    return ResourceExhausted("no staging memory for stop ids and logit biases of {} rows", p.count);
  }
  RETURN_IF_ERROR(PackSampleRows({p.rows, static_cast<size_t>(p.count)}, rows, side).status());
  RETURN_IF_ERROR(staging_.Send(stream_));
  RETURN_IF_ERROR(cuda::Sample(
      stream_, sampler_,
      {.logits = p.logits,
       .count = p.count,
       .rows = staging_.OnDevice(rows),
       .side = staging_.OnDevice(side),
       .tokens = p.tokens,
       .ids_out = ids_->as<int32_t>() + num_sampled_,
       .logprobs_out = any_logprobs ? logprobs_->as<SampledLogprobs>() + num_sampled_ : nullptr,
       .workspace = sampler_workspace_->data}));
  pending_.push_back({num_sampled_, p.count, p.ids_out, any_logprobs ? p.logprobs_out : nullptr});
  num_sampled_ += p.count;
  return absl::OkStatus();
}

absl::Status CudaBackend::Synchronize() {
  for (const PendingSample& sample : pending_) {
    PENSTOCK_CUDA(cudaMemcpyAsync(host_ids_->as<int32_t>() + sample.begin,
                                  ids_->as<int32_t>() + sample.begin,
                                  sample.count * sizeof(int32_t), cudaMemcpyDeviceToHost, stream_));
    if (sample.logprobs == nullptr) continue;
    PENSTOCK_CUDA(cudaMemcpyAsync(host_logprobs_->as<SampledLogprobs>() + sample.begin,
                                  logprobs_->as<SampledLogprobs>() + sample.begin,
                                  sample.count * sizeof(SampledLogprobs), cudaMemcpyDeviceToHost,
                                  stream_));
  }
  PENSTOCK_CUDA(cudaStreamSynchronize(stream_));
  for (const PendingSample& sample : pending_) {
    std::copy_n(host_ids_->as<int32_t>() + sample.begin, sample.count, sample.ids);
    if (sample.logprobs == nullptr) continue;
    std::copy_n(host_logprobs_->as<SampledLogprobs>() + sample.begin, sample.count,
                sample.logprobs);
  }
  pending_.clear();
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaOptions& options) {
  auto backend = std::make_unique<CudaBackend>(options);
  RETURN_IF_ERROR(backend->Init());
  return std::unique_ptr<Backend>(std::move(backend));
}

absl::StatusOr<int64_t> FreeDeviceMemory() {
  size_t free = 0, total = 0;
  PENSTOCK_CUDA(cudaMemGetInfo(&free, &total));
  return static_cast<int64_t>(free);
}

}  // namespace penstock::kernels::cuda
