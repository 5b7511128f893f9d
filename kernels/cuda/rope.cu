// Rotates q and k in place and writes k and v to their pages. A thread takes 16 elements of one
// head: for rotation by halves two vectors half the rotary size apart, else two neighbours; either
// way its eight angles are neighbours. The batch's description and the angles are read before the
// wait (see ops.h).
#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/vector.cuh"

namespace penstock::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kItem = 2 * kVector;  // elements of a head that a thread takes

struct RopeArgs {
  __nv_bfloat16* qkv;
  const float* cos_sin;
  const int32_t* slot_of_token;
  const int32_t* position_of_token;
  const int32_t* page_table;
  int64_t page_table_stride;
  __nv_bfloat16* k_pages;
  __nv_bfloat16* v_pages;
  int num_heads;
  int num_kv_heads;
  int head_size;
  int rotary_size;
  int page_shift;  // log2 of the page size
};

// Rotates (a, b) by the angles at `cos_sin` (cosines) and `sines`: pairs across the two vectors, or
// of neighbours inside each.
template <bool kInterleaved>
__device__ __forceinline__ void Rotate(const float (&cosine)[kVector], const float (&sine)[kVector],
                                       float (&a)[kVector], float (&b)[kVector]) {
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    float& x = !kInterleaved ? a[i] : i < kVector / 2 ? a[2 * i] : b[2 * i - kVector];
    float& y = !kInterleaved ? b[i] : i < kVector / 2 ? a[2 * i + 1] : b[2 * i + 1 - kVector];
    const float rotated = x * cosine[i] - y * sine[i];
    y = x * sine[i] + y * cosine[i];
    x = rotated;
  }
}

template <bool kInterleaved>
__global__ void __launch_bounds__(kThreads) RopeKvWriteKernel(const RopeArgs args) {
  LetNextStart();
  const int items_per_head = args.head_size / kItem;
  const int heads = args.num_heads + 2 * args.num_kv_heads;
  const int index = blockIdx.y * kThreads + threadIdx.x;
  const int head = index / items_per_head;
  const int item = index - head * items_per_head;
  const bool is_v = head >= args.num_heads + args.num_kv_heads;
  const bool rotates = !is_v && item * kItem < args.rotary_size;
  const int64_t token = blockIdx.x;
  const int slot = args.slot_of_token[token];
  const int position = args.position_of_token[token];
  if (head >= heads || slot < 0 || (head < args.num_heads && !rotates)) {
    WaitForEarlier();  // so that this kernel's end means the end of all before it
    return;
  }
  float cosine[kVector], sine[kVector];
  if (rotates) {
    const float* angles = args.cos_sin + static_cast<int64_t>(position) * args.rotary_size;
    LoadFloats(angles + item * kVector, cosine);
    LoadFloats(angles + args.rotary_size / 2 + item * kVector, sine);
  }
  const int group = head - args.num_heads - (is_v ? args.num_kv_heads : 0);
  int64_t page = 0;
  if (group >= 0) {
    page = args.page_table[slot * args.page_table_stride + (position >> args.page_shift)];
  }
  const bool split = rotates && !kInterleaved;
  const int first = split ? item * kVector : item * kItem;
  const int second = first + (split ? args.rotary_size / 2 : kVector);
  __nv_bfloat16* in = args.qkv + (token * heads + head) * args.head_size;
  WaitForEarlier();
  uint4 a = LoadVector(in + first);
  uint4 b = LoadVector(in + second);
  if (rotates) {
    float x[kVector], y[kVector];
    Unpack(a, x);
    Unpack(b, y);
    Rotate<kInterleaved>(cosine, sine, x, y);
    a = Pack(x);
    b = Pack(y);
    StoreVector(in + first, a);
    StoreVector(in + second, b);
  }
  if (group < 0) return;
  const int line = position & ((1 << args.page_shift) - 1);
  const int64_t row = ((page * args.num_kv_heads + group) << args.page_shift) + line;
  __nv_bfloat16* out = (is_v ? args.v_pages : args.k_pages) + row * args.head_size;
  StoreVector(out + first, a);
  StoreVector(out + second, b);
}

}  // namespace

absl::Status RopeKvWrite(cudaStream_t stream, const RopeKvWriteParams& p) {
  const BatchRows& batch = *p.batch;
  if (p.head_size % kItem != 0 || p.rotary_size % kItem != 0 || p.rotary_size > p.head_size) {
    return InvalidArgument(
        "head size {} with rotary size {} is not supported on the GPU: both must be multiples of {}"
        ", the latter no greater",
        p.head_size, p.rotary_size, kItem);
  }
  const int page_size = p.kv.page_size;
  if (p.kv.dtype != DType::kBF16 || page_size < 1 || (page_size & (page_size - 1)) != 0) {
    return InvalidArgument(
        "KV pages of {} positions are not supported on the GPU: they must be "
        "bf16, of a power of two positions",
        page_size);
  }
  if (batch.num_tokens == 0) return absl::OkStatus();
  const RopeArgs args = {static_cast<__nv_bfloat16*>(p.qkv),
                         p.cos_sin,
                         batch.slot_of_token,
                         batch.position_of_token,
                         batch.page_table,
                         batch.page_table_stride,
                         static_cast<__nv_bfloat16*>(p.kv.k),
                         static_cast<__nv_bfloat16*>(p.kv.v),
                         p.num_heads,
                         p.num_kv_heads,
                         p.head_size,
                         p.rotary_size,
                         __builtin_ctz(page_size)};
  const int items = (p.num_heads + 2 * p.num_kv_heads) * (p.head_size / kItem);
  const LaunchShape shape = {dim3(batch.num_tokens, (items + kThreads - 1) / kThreads),
                             dim3(kThreads)};
  return LaunchDependent(
      stream, shape, p.interleaved ? &RopeKvWriteKernel<true> : &RopeKvWriteKernel<false>, args);
}

}  // namespace penstock::kernels::cuda
