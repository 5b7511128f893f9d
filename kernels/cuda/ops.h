// Every op but linears, attention and sampling, on the GPU.
//
// All run on the caller's stream, allocate nothing, never wait for the device and may be captured
// in a graph; the counts in their params are fixed then, the rest is read from device memory.
// Activations are bf16, widths (D, E, F) multiples of 8 and rows 16-byte aligned: else
// INVALID_ARGUMENT at the launch.
//
// Order in a step: what describes the batch (BatchRows' arrays, page table, gather index) is copied
// first; Embed, which is launched plainly and so waits for all of that, is the step's first kernel.
// The kernels after it read the description before they wait for their predecessors, which hides
// the latency of those reads. Nothing may write it again before the step's end. In a token of a
// padded row slot_of_token is negative: Embed makes zeros of it and nothing goes to a page.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/ops.h"

namespace penstock::kernels::cuda {

// out[t] = scale * table[id]; zeros where the slot is negative or the id is none of the
// vocabulary's. table: [vocab, hidden].
absl::Status Embed(cudaStream_t stream, const __nv_bfloat16* table, int64_t vocab, int64_t hidden,
                   const EmbedParams& p);

// `p.group` must be null. The residual is rounded to bf16 first; its rounded value is normed.
absl::Status AddRmsNorm(cudaStream_t stream, const AddRmsNormParams& p);

// Head and rotary sizes are multiples of 16. Pages are [G][P][E] bf16, P a power of two.
absl::Status RopeKvWrite(cudaStream_t stream, const RopeKvWriteParams& p);

absl::Status GatedActivation(cudaStream_t stream, const GatedActivationParams& p);

// A negative index makes a row of zeros.
absl::Status GatherRows(cudaStream_t stream, const GatherRowsParams& p);

// dst[i] = src[i] rounded to bf16. Both 16-byte aligned device memory.
absl::Status ConvertToBf16(cudaStream_t stream, const void* src, DType type, __nv_bfloat16* dst,
                           int64_t count);

// dst[i] = RandomWeightValue(seed, first_index + i) of random_weight.h, rounded to bf16.
absl::Status FillRandomWeight(cudaStream_t stream, __nv_bfloat16* dst, int64_t count, uint64_t seed,
                              int64_t first_index);

// `count` ids from `begin` of a staged list, to (slot, position ..) of the token table. Runs with a
// negative slot are padding.
struct TokenRun {
  int32_t slot = -1;
  int32_t position = 0;
  int32_t begin = 0;
  int32_t count = 0;
};
// runs [num_runs] and staged are device (or pinned, mapped) memory.
absl::Status CopyTokens(cudaStream_t stream, const TokenRun* runs, int32_t num_runs,
                        const int32_t* staged, TokenTable table);

// page_table[slot * stride + index] = page; entries with a negative slot are padding.
struct PageEntry {
  int32_t slot = -1;
  int32_t index = 0;
  int32_t page = 0;
};
absl::Status ScatterPages(cudaStream_t stream, const PageEntry* entries, int32_t count,
                          int32_t* page_table, int64_t stride);

// Before a step's first kernel, as Embed waits for it. A page's bytes are a multiple of 16.
absl::Status CopyPages(cudaStream_t stream, const CopyPagesParams& p);

}  // namespace penstock::kernels::cuda
