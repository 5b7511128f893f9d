#include "kernels/cuda/attention.h"

#include <algorithm>

#include "kernels/cuda/device.h"

namespace penstock::kernels::cuda {

absl::StatusOr<std::unique_ptr<Attention>> Attention::Create(const AttentionConfig& config) {
  std::unique_ptr<Attention> attention(new Attention);
  RETURN_IF_ERROR(attention->Init(config));
  return attention;
}

absl::Status Attention::Init(const AttentionConfig& c) {
  if (c.num_kv_heads < 1 || c.num_heads < 1 || c.num_heads % c.num_kv_heads != 0) {
    return InvalidArgument("{} query heads are no multiple of {} KV heads", c.num_heads,
                           c.num_kv_heads);
  }
  int device = 0, num_sms = 0, major = 0, minor = 0, max_shared = 0;
  PENSTOCK_CUDA(cudaGetDevice(&device));
  PENSTOCK_CUDA(cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device));
  PENSTOCK_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  PENSTOCK_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  PENSTOCK_CUDA(
      cudaDeviceGetAttribute(&max_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));

  deep_ = {c.num_heads, c.num_kv_heads, c.head_size, c.page_size, c.max_rows, num_sms};
  deep_.snap_tokens = c.decode_snap_tokens;
  if (c.decode_variant >= 0) deep_.variant = c.decode_variant;
  wide_ = deep_;
  if (c.decode_variant < 0 && deep_.group() <= 8) {
    wide_.variant = kWideDecode;
    if (DecodeSharedBytes(wide_) > max_shared) wide_ = deep_;  // before Hopper
  }
  RETURN_IF_ERROR(PrepareDecode(deep_));
  RETURN_IF_ERROR(PrepareDecode(wide_));

  const int flash_tile = FlashTileQueries(c.head_size);
  const bool can_flash = flash_tile > 0 && major == 9 && minor == 0;
  if (c.prefill == PrefillPath::kFlash && !can_flash) {
    return Unimplemented("this build has no FlashAttention-3 for head size {} on sm_{}{}",
                         c.head_size, major, minor);
  }
  flash_ = can_flash && c.prefill != PrefillPath::kPortable;
  prefill_ = {c.num_heads, c.num_kv_heads, c.head_size, c.page_size, c.max_rows, c.max_tokens};
  prefill_.tile_queries = flash_ ? flash_tile : kPortableTileQueries;
  prefill_.num_blocks = num_sms;
  if (!flash_) {
    ASSIGN_OR_RETURN(const int32_t blocks_per_sm, PreparePortablePrefill(prefill_));
    prefill_.num_blocks = num_sms * std::max(1, blocks_per_sm);
  }
  planner_.emplace(prefill_);

  const DecodeConfig& largest = deep_.grid() > wide_.grid() ? deep_ : wide_;
  const size_t decode_bytes = DecodeWorkspaceBytes(largest);
  const size_t items_bytes = PrefillItemsBytes(prefill_);
  device_bytes_ = decode_bytes + items_bytes;
  PENSTOCK_CUDA(cudaMalloc(&device_memory_, device_bytes_));
  PENSTOCK_CUDA(cudaMemset(device_memory_, 0, device_bytes_));
  decode_workspace_ = LayOutDecodeWorkspace(largest, device_memory_);
  device_items_ = static_cast<char*>(device_memory_) + decode_bytes;
  for (Staging& staging : staging_) {
    PENSTOCK_CUDA(cudaMallocHost(&staging.memory, items_bytes));
    PENSTOCK_CUDA(cudaEventCreateWithFlags(&staging.copied, cudaEventDisableTiming));
  }
  PENSTOCK_CUDA(cudaDeviceSynchronize());
  return absl::OkStatus();
}

Attention::~Attention() {
  for (Staging& staging : staging_) {
    if (staging.copied != nullptr) cudaEventDestroy(staging.copied);
    if (staging.memory != nullptr) cudaFreeHost(staging.memory);
  }
  if (device_memory_ != nullptr) cudaFree(device_memory_);
}

const DecodeConfig& Attention::DecodeFor(int32_t num_rows) const {
  return num_rows * wide_.num_kv_heads <= wide_.num_sms ? wide_ : deep_;
}

absl::Status Attention::Plan(const BatchRows& batch, cudaStream_t stream) {
  if (batch.num_rows > deep_.max_rows) {
    return InvalidArgument("{} rows in a step: attention was set up for {}", batch.num_rows,
                           deep_.max_rows);
  }
  RETURN_IF_ERROR(PlanDecode(DecodeFor(batch.num_single), decode_workspace_, batch, stream));
  num_items_ = 0;
  if (batch.num_rows > batch.num_single) return PlanPrefill(batch, stream);
  return absl::OkStatus();
}

absl::Status Attention::PlanPrefill(const BatchRows& batch, cudaStream_t stream) {
  Staging& staging = staging_[next_staging_];
  next_staging_ = (next_staging_ + 1) % kPlansInFlight;
  // Returns at once unless the caller is three steps ahead of the device.
  PENSTOCK_CUDA(cudaEventSynchronize(staging.copied));
  ASSIGN_OR_RETURN(num_items_, planner_->Plan(batch, staging.memory));
  items_ = LayOutPrefillItems(prefill_, num_items_, device_items_);
  const size_t bytes =
      reinterpret_cast<char*>(items_.first_page) - reinterpret_cast<char*>(items_.first_item);
  PENSTOCK_CUDA(
      cudaMemcpyAsync(device_items_, staging.memory, bytes, cudaMemcpyHostToDevice, stream));
  PENSTOCK_CUDA(cudaEventRecord(staging.copied, stream));
  if (num_items_ == 0) return absl::OkStatus();
  return LocatePrefillPages(items_, num_items_, batch, stream);
}

absl::Status Attention::Run(const AttentionParams& params, cudaStream_t stream) {
  if (params.kv.dtype != DType::kBF16 || params.kv.page_size != prefill_.page_size) {
    return InvalidArgument("attention was set up for bf16 pages of {} tokens", prefill_.page_size);
  }
  RETURN_IF_ERROR(Decode(DecodeFor(params.batch->num_single), decode_workspace_, params, stream));
  if (num_items_ == 0 || params.batch->num_rows == params.batch->num_single) {
    return absl::OkStatus();
  }
  return flash_ ? FlashPrefill(prefill_, items_, params, stream)
                : PortablePrefill(prefill_, items_, params, stream);
}

}  // namespace penstock::kernels::cuda
