#include "kernels/cpu/rope.h"

#include "common/status.h"

namespace penstock::kernels::cpu {

KvType KvTypeOf(DType type) {
  switch (type) {
    case DType::kF16:
      return KvType::kF16;
    case DType::kBF16:
      return KvType::kBF16;
    case DType::kF32:
      break;
  }
  return KvType::kF32;
}

absl::Status CheckHeadSize(int head_size) {
  if (head_size > 0 && head_size % 16 == 0 && head_size <= kMaxHeadSize) return absl::OkStatus();
  return InvalidArgument(
      "head size {} is not supported on the CPU: it must be a multiple of 16, at most {}",
      head_size, kMaxHeadSize);
}

absl::Status RopeKvWrite(const Cpu& cpu, const RopeKvWriteParams& p) {
  RETURN_IF_ERROR(CheckHeadSize(p.head_size));
  const BatchRows& batch = *p.batch;
  const int64_t head_size = p.head_size;
  const int64_t stride = (p.num_heads + 2 * p.num_kv_heads) * head_size;
  const int64_t head_page = p.kv.page_size * head_size * DTypeSize(p.kv.dtype);  // bytes
  const KvType type = KvTypeOf(p.kv.dtype);
  ForEach(cpu, batch.num_tokens, batch.num_tokens * stride, [&](int, int64_t t) {
    float* q = static_cast<float*>(p.qkv) + t * stride;
    float* k = q + p.num_heads * head_size;
    const float* v = k + p.num_kv_heads * head_size;
    const int position = batch.position_of_token[t];
    // q and k lie side by side.
    cpu.kernels->rope(q, p.num_heads + p.num_kv_heads, p.head_size, p.rotary_size, p.interleaved,
                      p.cos_sin + static_cast<int64_t>(position) * p.rotary_size);
    const int32_t* pages = batch.page_table + batch.slot_of_token[t] * batch.page_table_stride;
    const int64_t first = static_cast<int64_t>(pages[position / p.kv.page_size]) * p.num_kv_heads;
    const int line = position % p.kv.page_size;
    for (int g = 0; g < p.num_kv_heads; ++g) {
      const int64_t offset = (first + g) * head_page;
      cpu.kernels->write_k(k + g * head_size, p.head_size, type,
                           static_cast<std::byte*>(p.kv.k) + offset, p.kv.page_size, line);
      cpu.kernels->write_v(v + g * head_size, p.head_size, type,
                           static_cast<std::byte*>(p.kv.v) + offset, line);
    }
  });
  return absl::OkStatus();
}

}  // namespace penstock::kernels::cpu
