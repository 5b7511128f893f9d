// The loops of one instruction set, named so that table.cc can list them.
#pragma once

#include "kernels/cpu/simd/kernels.h"

namespace penstock::kernels::cpu::PENSTOCK_ISA {

void AddRmsNormRow(const float* x, int64_t segment_stride, int num_segments, float* residual,
                   const float* weight, float* out, int64_t n, float epsilon);
void RopeHeads(float* heads, int num_heads, int head_size, int rotary_size, bool interleaved,
               const float* cos_sin);
void WriteK(const float* k, int head_size, KvType type, void* page, int page_size, int line);
void WriteV(const float* v, int head_size, KvType type, void* page, int line);
void Attend(const AttentionTile& tile);
void SiluMul(const float* gate, const float* up, float* out, int64_t n);
void ExpRow(const float* x, float* out, int64_t n);
int64_t ArgMax(const float* x, int64_t n, bool all_finite);
double ExpSum(const float* x, int64_t n, float shift, float factor, float floor, float* out,
              double* block_sums);
int64_t CountAbove(const float* x, int64_t n, float value, double* sum);
int64_t NextBetween(const float* x, int64_t begin, int64_t n, float low, float high);
double DropBelow(float* x, int64_t n, float floor, double* block_sums);

}  // namespace penstock::kernels::cpu::PENSTOCK_ISA
