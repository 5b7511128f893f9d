#include "kernels/cuda/weights.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/cpu/dequantize.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/ops.h"

namespace penstock::kernels::cuda {
namespace {

constexpr size_t kLaneBytes = size_t{32} << 20;

// What lies in a lane: quantised blocks are float32 by then.
DType LaneType(WeightFormat format) {
  if (format == WeightFormat::kF16) return DType::kF16;
  if (format == WeightFormat::kBF16) return DType::kBF16;
  return DType::kF32;
}

}  // namespace

CudaWeight::CudaWeight(const __nv_bfloat16* weight_data, int64_t num_rows, int64_t num_cols,
                       std::unique_ptr<Buffer> owned)
    : data(weight_data), owned_(std::move(owned)) {
  rows = num_rows;
  cols = num_cols;
}

absl::StatusOr<std::unique_ptr<WeightUploader>> WeightUploader::Create(cudaStream_t stream) {
  std::unique_ptr<WeightUploader> uploader(new WeightUploader(stream));
  for (Lane& lane : uploader->lanes_) {
    ASSIGN_OR_RETURN(lane.pinned, AllocatePinned(kLaneBytes));
    ASSIGN_OR_RETURN(lane.raw, AllocateDevice(kLaneBytes));
    PENSTOCK_CUDA(cudaEventCreateWithFlags(&lane.free, cudaEventDisableTiming));
  }
  return uploader;
}

WeightUploader::~WeightUploader() {
  cudaStreamSynchronize(stream_);
  for (const Lane& lane : lanes_) {
    if (lane.free != nullptr) cudaEventDestroy(lane.free);
  }
}

absl::Status WeightUploader::LoadRows(const WeightSegment& segment, int64_t row, int64_t count,
                                      __nv_bfloat16* out) {
  const Lane& lane = lanes_[next_lane_];
  next_lane_ = (next_lane_ + 1) % lanes_.size();
  PENSTOCK_CUDA(cudaEventSynchronize(lane.free));
  const DType type = LaneType(segment.format);
  const size_t row_bytes = segment.cols * DTypeSize(type);
  const std::byte* source = segment.data + row * segment.row_bytes;
  auto* to = lane.pinned->as<std::byte>();
  for (int64_t r = 0; r < count; ++r, source += segment.row_bytes, to += row_bytes) {
    if (cpu::IsQuantized(segment.format)) {
      cpu::Dequantize(segment.format, source, segment.cols, reinterpret_cast<float*>(to));
    } else {
      std::memcpy(to, source, row_bytes);
    }
  }
  const bool converted = type != DType::kBF16;
  PENSTOCK_CUDA(cudaMemcpyAsync(converted ? lane.raw->data : out, lane.pinned->data,
                                count * row_bytes, cudaMemcpyHostToDevice, stream_));
  if (converted) {
    RETURN_IF_ERROR(ConvertToBf16(stream_, lane.raw->data, type, out, count * segment.cols));
  }
  return CudaStatus(cudaEventRecord(lane.free, stream_), "cudaEventRecord");
}

absl::StatusOr<std::unique_ptr<CudaWeight>> WeightUploader::Load(
    std::span<const WeightSegment> segments) {
  int64_t rows = 0;
  const int64_t cols = segments.front().cols;
  for (const WeightSegment& segment : segments) rows += segment.rows;
  ASSIGN_OR_RETURN(std::unique_ptr<Buffer> buffer,
                   AllocateDevice(rows * cols * sizeof(__nv_bfloat16)));
  auto* out = buffer->as<__nv_bfloat16>();
  const auto rows_a_lane = static_cast<int64_t>(kLaneBytes / (cols * sizeof(float)));
  for (const WeightSegment& segment : segments) {
    for (int64_t row = 0; row < segment.rows; row += rows_a_lane) {
      const int64_t count = std::min(rows_a_lane, segment.rows - row);
      RETURN_IF_ERROR(LoadRows(segment, row, count, out));
      out += count * cols;
    }
  }
  const auto* data = buffer->as<__nv_bfloat16>();
  return std::make_unique<CudaWeight>(data, rows, cols, std::move(buffer));
}

absl::StatusOr<std::unique_ptr<CudaWeight>> MakeRandomWeight(int64_t rows, int64_t cols,
                                                             uint64_t seed, cudaStream_t stream) {
  ASSIGN_OR_RETURN(std::unique_ptr<Buffer> buffer,
                   AllocateDevice(rows * cols * sizeof(__nv_bfloat16)));
  auto* data = buffer->as<__nv_bfloat16>();
  RETURN_IF_ERROR(FillRandomWeight(stream, data, rows * cols, seed, 0));
  return std::make_unique<CudaWeight>(data, rows, cols, std::move(buffer));
}

}  // namespace penstock::kernels::cuda
