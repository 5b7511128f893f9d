// Device code that every op file shares: 16-byte accesses, bf16 in float32 registers, and the two
// halves of programmatic dependent launch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace penstock::kernels::cuda {

constexpr int kVector = 8;  // bf16 elements in 16 bytes

// From here on, what earlier kernels wrote is visible. Before compute capability 9.0 a kernel
// starts after the one before it anyway.
__device__ __forceinline__ void WaitForEarlier() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

// Lets the next kernel's blocks come in as soon as there is room; they wait in WaitForEarlier.
__device__ __forceinline__ void LetNextStart() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

__device__ __forceinline__ void Unpack(const uint4& packed, float (&out)[kVector]) {
  const uint32_t words[] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < kVector / 2; ++i) {
    out[2 * i] = __uint_as_float(words[i] << 16);
    out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

__device__ __forceinline__ uint4 Pack(const float (&in)[kVector]) {
  uint32_t words[kVector / 2];
#pragma unroll
  for (int i = 0; i < kVector / 2; ++i) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(in[2 * i], in[2 * i + 1]);
    words[i] = static_cast<uint32_t>(__bfloat16_as_ushort(pair.x)) |
               static_cast<uint32_t>(__bfloat16_as_ushort(pair.y)) << 16;
  }
  return {words[0], words[1], words[2], words[3]};
}

__device__ __forceinline__ void LoadFloats(const float* p, float (&out)[kVector]) {
  const float4 low = reinterpret_cast<const float4*>(p)[0];
  const float4 high = reinterpret_cast<const float4*>(p)[1];
  out[0] = low.x, out[1] = low.y, out[2] = low.z, out[3] = low.w;
  out[4] = high.x, out[5] = high.y, out[6] = high.z, out[7] = high.w;
}

__device__ __forceinline__ uint4 LoadVector(const __nv_bfloat16* p) {
  return *reinterpret_cast<const uint4*>(p);
}

__device__ __forceinline__ void StoreVector(__nv_bfloat16* p, const uint4& value) {
  *reinterpret_cast<uint4*>(p) = value;
}

}  // namespace penstock::kernels::cuda
