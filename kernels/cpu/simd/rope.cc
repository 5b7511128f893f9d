// Every operation here is on one element alone and contraction is off, so plain loops give the same
// bits however the compiler vectorises them.
#include "kernels/cpu/simd/loops.h"
#include "kernels/cpu/simd/vec.h"

namespace penstock::kernels::cpu::PENSTOCK_ISA {
namespace {

void RotateHalves(float* __restrict head, int half, const float* __restrict cosine,
                  const float* __restrict sine) {
  for (int i = 0; i < half; ++i) {
    const float a = head[i];
    const float b = head[i + half];
    head[i] = a * cosine[i] - b * sine[i];
    head[i + half] = b * cosine[i] + a * sine[i];
  }
}

void RotatePairs(float* __restrict head, int half, const float* __restrict cosine,
                 const float* __restrict sine) {
  for (int i = 0; i < half; ++i) {
    const float a = head[2 * i];
    const float b = head[2 * i + 1];
    head[2 * i] = a * cosine[i] - b * sine[i];
    head[2 * i + 1] = b * cosine[i] + a * sine[i];
  }
}

PENSTOCK_INLINE void Narrow(const float* x, float* out) { Store(out, Load(x)); }
PENSTOCK_INLINE void Narrow(const float* x, Half* out) { Store(out, Load(x)); }
PENSTOCK_INLINE void Narrow(const float* x, BFloat* out) { Store(out, Load(x)); }

template <typename T>
void WriteColumn(const float* k, int head_size, T* page, int page_size, int line) {
  const int first = line / kKvBlock * kKvBlock;
  const int width = page_size - first < kKvBlock ? page_size - first : kKvBlock;
  T* column = page + static_cast<int64_t>(first) * head_size + (line - first);
  for (int e = 0; e < head_size; e += kLanes) {
    T narrow[kLanes];
    Narrow(k + e, narrow);
    for (int i = 0; i < kLanes; ++i) column[static_cast<int64_t>(e + i) * width] = narrow[i];
  }
}

template <typename T>
void WriteLine(const float* v, int head_size, T* page, int line) {
  T* out = page + static_cast<int64_t>(line) * head_size;
  for (int e = 0; e < head_size; e += kLanes) Narrow(v + e, out + e);
}

}  // namespace

void RopeHeads(float* heads, int num_heads, int head_size, int rotary_size, bool interleaved,
               const float* cos_sin) {
  const int half = rotary_size / 2;
  for (int h = 0; h < num_heads; ++h) {
    float* head = heads + static_cast<int64_t>(h) * head_size;
    if (interleaved) {
      RotatePairs(head, half, cos_sin, cos_sin + half);
    } else {
      RotateHalves(head, half, cos_sin, cos_sin + half);
    }
  }
}

void WriteK(const float* k, int head_size, KvType type, void* page, int page_size, int line) {
  switch (type) {
    case KvType::kF32:
      return WriteColumn(k, head_size, static_cast<float*>(page), page_size, line);
    case KvType::kF16:
      return WriteColumn(k, head_size, static_cast<Half*>(page), page_size, line);
    case KvType::kBF16:
      return WriteColumn(k, head_size, static_cast<BFloat*>(page), page_size, line);
  }
}

void WriteV(const float* v, int head_size, KvType type, void* page, int line) {
  switch (type) {
    case KvType::kF32:
      return WriteLine(v, head_size, static_cast<float*>(page), line);
    case KvType::kF16:
      return WriteLine(v, head_size, static_cast<Half*>(page), line);
    case KvType::kBF16:
      return WriteLine(v, head_size, static_cast<BFloat*>(page), line);
  }
}

}  // namespace penstock::kernels::cpu::PENSTOCK_ISA
