#include "kernels/cuda/cuda_backend.h"

#include <nvtx3/nvToolsExt.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "common/log.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/sampler.h"
#include "kernels/cuda/step_staging.h"
#include "kernels/cuda/weights.h"

namespace penstock::kernels::cuda {
namespace {

// Rows of captured steps: close together, so that little padding is computed.
constexpr int32_t kCaptureSizes[] = {1,  2,  4,  8,   16,  24,  32,  40,  48, 56,
                                     64, 80, 96, 112, 128, 160, 192, 224, 256};
constexpr int32_t kCaptureStep = 64;  // from there on
constexpr int32_t kMaxCaptureSize = 512;

std::vector<int32_t> CaptureSizesUpTo(int32_t max_rows) {
  const int32_t most = std::min(max_rows, kMaxCaptureSize);
  std::vector<int32_t> sizes(std::begin(kCaptureSizes), std::end(kCaptureSizes));
  while (sizes.back() < most) sizes.push_back(sizes.back() + kCaptureStep);
  std::erase_if(sizes, [&](int32_t size) { return size >= most; });
  sizes.push_back(most);
  return sizes;
}

class CudaBackend : public Backend {
 public:
  explicit CudaBackend(const CudaOptions& options) : options_(options) {}
  ~CudaBackend() override;
  absl::Status Init();

  std::string_view name() const override { return "cuda"; }
  DType activation_dtype() const override { return DType::kBF16; }
  bool batch_invariant() const override { return false; }
  bool needs_weights() const override { return true; }
  absl::StatusOr<std::optional<DeviceMemory>> Memory() const override { return QueryMemory(); }

  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(size_t bytes) override {
    ASSIGN_OR_RETURN(std::unique_ptr<Buffer> buffer, AllocateDevice(bytes));
    PENSTOCK_CUDA(cudaMemsetAsync(buffer->data, 0, buffer->bytes, stream_));
    return buffer;
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
                                                     int64_t count) override;
  absl::Status Reserve(const ReserveParams& params) override;

  absl::Status BindTokens(TokenTable table, int32_t slot, std::span<const int32_t> ids) override {
    return staging_->Bind(table, slot, ids, stream_);
  }
  absl::Status CopyPages(const CopyPagesParams& p) override { return cuda::CopyPages(stream_, p); }
  int max_steps_in_flight() const override { return kMaxStepsInFlight; }
  absl::StatusOr<BegunStep> BeginStep(const StepInputs& inputs) override;
  absl::Status EndStep() override;
  absl::StatusOr<StepReport> WaitStep() override;
  std::vector<int32_t> CaptureSizes() const override;
  absl::StatusOr<StepInputs> BeginCapture(int32_t num_rows) override;
  absl::Status EndCapture() override;

  absl::Status Embed(const EmbedParams& p) override {
    const CudaWeight& table = AsCuda(*p.table);
    return cuda::Embed(stream_, table.data, table.rows, table.cols, p);
  }
  absl::Status AddRmsNorm(const AddRmsNormParams& p) override {
    return cuda::AddRmsNorm(stream_, p);
  }
  absl::Status Linear(const LinearParams& p) override {
    return Multiply(*p.weight, p.x, p.x_stride, p.bias, p.out, p.num_tokens, LinearOutput::kBf16,
                    p.num_k_segments);
  }
  int32_t KSegments(const Weight& weight, int32_t num_tokens) const override {
    if (num_tokens > kMaxSegmentedTokens) return 1;
    return linear_->BestSegments({weight.rows, weight.cols}, num_tokens);
  }
  absl::Status RopeKvWrite(const RopeKvWriteParams& p) override {
    return cuda::RopeKvWrite(stream_, p);
  }
  absl::Status Attention(const AttentionParams& p) override { return attention_->Run(p, stream_); }
  absl::Status GatedActivation(const GatedActivationParams& p) override {
    return cuda::GatedActivation(stream_, p);
  }
  absl::Status GatedLinear(const GatedLinearParams& p) override {
    const LinearShape shape = {p.weight->rows, p.weight->cols, LinearOutput::kSiluUp};
    if (!linear_->FusesSiluUp(shape, p.num_tokens)) return Backend::GatedLinear(p);
    return Multiply(*p.weight, p.x, p.x_stride, nullptr, p.out, p.num_tokens,
                    LinearOutput::kSiluUp);
  }
  absl::Status GatherRows(const GatherRowsParams& p) override;
  absl::Status Logits(const LogitsParams& p) override {
    return Multiply(*p.head, p.x, p.head->cols, nullptr, p.out, p.count, LinearOutput::kFloat);
  }
  absl::Status Sample(const SampleParams& p) override;

 private:
  void Seen(int64_t rows, int64_t cols, WeightUse use) {
    if (use != WeightUse::kEmbedding) linears_.insert({rows, cols});
  }
  absl::Status Multiply(const Weight& weight, const void* x, int64_t x_stride, const float* bias,
                        void* out, int32_t num_tokens, LinearOutput output, int32_t k_segments = 1);
  absl::Status PlanLinears(const ReserveParams& params);

  const CudaOptions options_;
  cudaStream_t stream_ = nullptr;
  std::set<std::pair<int64_t, int64_t>> linears_;  // [N, K] of what was loaded
  std::unique_ptr<WeightUploader> uploader_;       // until Reserve
  std::unique_ptr<class Linear> linear_;
  std::unique_ptr<class Attention> attention_;
  std::unique_ptr<StepStaging> staging_;
  SamplerPlan sampler_;
  std::unique_ptr<Buffer> sampler_workspace_;

  std::map<int32_t, cudaGraphExec_t> graphs_;  // by rows
  int32_t max_rows_ = 0;
  int32_t capturing_ = 0;  // rows of the capture under way
  // What stands for the outputs' host memory while a step is captured.
  std::vector<int32_t> capture_output_token_, capture_ids_;
  std::vector<SampleRow> capture_outputs_;
  std::vector<SampledLogprobs> capture_logprobs_;

  // The step whose ops are being called: where its parts lie in host memory and on the device.
  StepInputs inputs_;
  StagedStep staged_;
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
  ASSIGN_OR_RETURN(linear_, Linear::Create({.cache_directory = options_.cache_directory}));
  spdlog::info("msg=\"GPU\" name=\"{}\" memory_mb={} multiprocessors={}", device.name,
               device.totalGlobalMem >> 20, device.multiProcessorCount);
  return absl::OkStatus();
}

CudaBackend::~CudaBackend() {
  if (stream_ != nullptr) cudaStreamSynchronize(stream_);
  for (const auto& [rows, graph] : graphs_) cudaGraphExecDestroy(graph);
  uploader_ = nullptr;
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

absl::StatusOr<std::unique_ptr<Weight>> CudaBackend::LoadWeight(
    std::span<const WeightSegment> segments, WeightUse use) {
  if (uploader_ == nullptr) {
    ASSIGN_OR_RETURN(uploader_, WeightUploader::Create(stream_));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<CudaWeight> weight, uploader_->Load(segments));
  Seen(weight->rows, weight->cols, use);
  return std::unique_ptr<Weight>(std::move(weight));
}

absl::StatusOr<std::unique_ptr<Weight>> CudaBackend::RandomWeight(WeightFormat, int64_t rows,
                                                                  int64_t cols, WeightUse use,
                                                                  uint64_t seed) {
  ASSIGN_OR_RETURN(std::unique_ptr<CudaWeight> weight, MakeRandomWeight(rows, cols, seed, stream_));
  Seen(rows, cols, use);
  return std::unique_ptr<Weight>(std::move(weight));
}

absl::StatusOr<std::unique_ptr<Weight>> CudaBackend::WeightRows(const Weight& weight, int64_t begin,
                                                                int64_t count) {
  const CudaWeight& whole = AsCuda(weight);
  Seen(count, whole.cols, WeightUse::kLinear);
  return std::make_unique<CudaWeight>(whole.data + begin * whole.cols, count, whole.cols, nullptr);
}

absl::Status CudaBackend::PlanLinears(const ReserveParams& p) {
  std::vector<PlannedLinear> planned;
  for (const auto& [n, k] : linears_) {
    const bool head = n == p.vocab_size;
    const LinearOutput output = head ? LinearOutput::kFloat : LinearOutput::kBf16;
    const int32_t max_tokens = head ? p.max_logits : p.max_tokens;
    planned.push_back({.shape = {.n = n, .k = k, .output = output}, .max_tokens = max_tokens});
    for (int32_t segments = 2; n == p.hidden && segments <= kMaxKSegments; segments *= 2) {
      if (k % (segments * 8) != 0) continue;
      planned.push_back({.shape = {.n = n, .k = k, .output = output, .k_segments = segments},
                         .max_tokens = std::min(max_tokens, kMaxSegmentedTokens)});
    }
    if (n == int64_t{2} * p.mlp_width) {
      planned.push_back(
          {.shape = {.n = n, .k = k, .output = LinearOutput::kSiluUp}, .max_tokens = max_tokens});
    }
  }
  return linear_->Plan(planned, CaptureSizesUpTo(p.max_rows));
}

absl::Status CudaBackend::Reserve(const ReserveParams& p) {
  PENSTOCK_CUDA(cudaStreamSynchronize(stream_));
  uploader_ = nullptr;
  max_rows_ = p.max_rows;
  RETURN_IF_ERROR(PlanLinears(p));
  ASSIGN_OR_RETURN(attention_, Attention::Create({.num_heads = p.num_heads,
                                                  .num_kv_heads = p.num_kv_heads,
                                                  .head_size = p.head_size,
                                                  .page_size = p.page_size,
                                                  .max_rows = p.max_rows,
                                                  .max_tokens = p.max_tokens}));
  ASSIGN_OR_RETURN(sampler_, PlanSampler(p.vocab_size));
  ASSIGN_OR_RETURN(sampler_workspace_,
                   AllocateDevice(sampler_.workspace_bytes_per_row * p.max_logits));
  ASSIGN_OR_RETURN(staging_, StepStaging::Create({.num_slots = options_.num_slots,
                                                  .max_pages_per_slot = options_.max_pages_per_slot,
                                                  .page_size = p.page_size,
                                                  .max_tokens = p.max_tokens,
                                                  .max_rows = p.max_rows}));
  return absl::OkStatus();
}

absl::StatusOr<Backend::BegunStep> CudaBackend::BeginStep(const StepInputs& inputs) {
  const BatchRows& rows = inputs.rows;
  // The smallest captured step that holds this one.
  auto graph = graphs_.end();
  if (rows.num_single == rows.num_rows) {
    const auto outputs = static_cast<int32_t>(inputs.outputs.size());
    graph = graphs_.lower_bound(std::max(rows.num_rows, outputs));
  }
  char range[64];  // nothing is allocated a step
  *fmt::format_to_n(range, sizeof(range) - 1, "{} rows {} tokens {}",
                    graph != graphs_.end() ? "replay" : "eager", rows.num_rows, rows.num_tokens)
       .out = '\0';
  nvtxRangePushA(range);
  const int32_t padded_rows = graph != graphs_.end() ? graph->first : 0;
  ASSIGN_OR_RETURN(staged_, staging_->Stage(inputs, padded_rows, stream_));
  inputs_ = inputs;
  if (graph != graphs_.end()) {
    PENSTOCK_CUDA(cudaGraphLaunch(graph->second, stream_));
    return BegunStep{.rows = staged_.rows, .replayed = true};
  }
  RETURN_IF_ERROR(attention_->Plan(staged_.rows, stream_));
  return BegunStep{.rows = staged_.rows};
}

absl::Status CudaBackend::EndStep() {
  nvtxRangePop();
  return staging_->Finish(stream_);
}

absl::StatusOr<StepReport> CudaBackend::WaitStep() {
  PENSTOCK_CUDA(cudaSetDevice(options_.device));  // of the waiting thread
  return staging_->Wait();
}

std::vector<int32_t> CudaBackend::CaptureSizes() const {
  return options_.enforce_eager ? std::vector<int32_t>() : CaptureSizesUpTo(max_rows_);
}

absl::StatusOr<StepInputs> CudaBackend::BeginCapture(int32_t num_rows) {
  capturing_ = num_rows;
  capture_output_token_.resize(num_rows);
  capture_outputs_.resize(num_rows);
  capture_ids_.resize(num_rows);
  capture_logprobs_.resize(num_rows);
  inputs_ = {.output_token = capture_output_token_,
             .outputs = capture_outputs_,
             .ids = {capture_ids_},
             .logprobs = {capture_logprobs_}};
  staged_ = staging_->LayOutPadded(num_rows);
  inputs_.rows = staged_.rows;
  PENSTOCK_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  RETURN_IF_ERROR(attention_->Plan(staged_.rows, stream_));
  return inputs_;
}

absl::Status CudaBackend::EndCapture() {
  cudaGraph_t graph = nullptr;
  PENSTOCK_CUDA(cudaStreamEndCapture(stream_, &graph));
  cudaGraphExec_t executable = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  RETURN_IF_ERROR(CudaStatus(error, "cudaGraphInstantiate"));
  graphs_[capturing_] = executable;
  return CudaStatus(cudaGraphUpload(executable, stream_), "cudaGraphUpload");
}

absl::Status CudaBackend::Multiply(const Weight& weight, const void* x, int64_t x_stride,
                                   const float* bias, void* out, int32_t num_tokens,
                                   LinearOutput output, int32_t k_segments) {
  const CudaWeight& matrix = AsCuda(weight);
  const int64_t width = output == LinearOutput::kSiluUp ? matrix.rows / 2 : matrix.rows;
  return linear_->Run(
      {.shape = {.n = matrix.rows, .k = matrix.cols, .output = output, .k_segments = k_segments},
       .num_tokens = num_tokens,
       .x = static_cast<const __nv_bfloat16*>(x),
       .x_stride = x_stride,
       .weight = matrix.data,
       .bias = bias,
       .out = out,
       .out_stride = width},
      stream_);
}

absl::Status CudaBackend::GatherRows(const GatherRowsParams& p) {
  GatherRowsParams device = p;
  device.index = staged_.output_token + (p.index - inputs_.output_token.data());
  return cuda::GatherRows(stream_, device);
}

absl::Status CudaBackend::Sample(const SampleParams& p) {
  const auto first = p.rows - inputs_.outputs.data();
  return cuda::Sample(stream_, sampler_,
                      {.logits = p.logits,
                       .count = p.count,
                       .rows = staged_.outputs + first,
                       .side = staged_.side,
                       .tokens = p.tokens,
                       .ids_out = staging_->ids() + first,
                       .logprobs_out = staging_->logprobs() + first,
                       .workspace = sampler_workspace_->data});
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaOptions& options) {
  auto backend = std::make_unique<CudaBackend>(options);
  RETURN_IF_ERROR(backend->Init());
  return std::unique_ptr<Backend>(std::move(backend));
}

}  // namespace penstock::kernels::cuda
