// FlashAttention-3 (Shah et al., 2024) for Hopper, head size 128: FlashInfer's kernel template over
// paged keys and values, with our own lists of work. The page table is its array of page ids: an
// item's pages begin at first_page.
#include <cuda_bf16.h>

#include <flashinfer/attention/hopper/default_params.cuh>
#include <flashinfer/attention/hopper/prefill_sm90.cuh>
#include <flashinfer/attention/hopper/variants.cuh>
#include <flashinfer/attention/mask.cuh>

#include "kernels/cuda/attention_prefill.h"
#include "kernels/cuda/device.h"

namespace penstock::kernels::cuda {

constexpr int kFlashHeadSize = 128;

int32_t FlashTileQueries(int32_t head_size) { return head_size == kFlashHeadSize ? 128 : 0; }

absl::Status FlashPrefill(const PrefillConfig& c, const PrefillItems& items,
                          const AttentionParams& a, cudaStream_t stream) {
  using Element = cutlass::bfloat16_t;
  using Params = flashinfer::BatchPrefillPagedParams<Element, Element, Element, int32_t>;
  Params p{};
  p.q_ptr = static_cast<Element*>(const_cast<void*>(a.q));
  p.k_ptr = static_cast<Element*>(a.kv.k);
  p.v_ptr = static_cast<Element*>(a.kv.v);
  p.o_ptr = static_cast<Element*>(a.out);
  p.work_indptr = items.first_item;
  p.qo_tile_indices = items.tile;
  p.head_indices = items.head;
  p.batch_indices = items.row;
  p.qo_indptr = items.token_begin;
  p.qo_lens = items.query_len;
  p.kv_lens = items.context_len;
  p.kv_indptr = items.first_page;
  p.kv_indices = const_cast<int32_t*>(a.batch->page_table);
  p.additional_params.sm_scale = a.scale;
  p.q_stride_n = a.q_stride;
  p.q_stride_h = kFlashHeadSize;
  p.o_stride_n = static_cast<int64_t>(c.num_heads) * kFlashHeadSize;
  p.o_stride_h = kFlashHeadSize;
  p.k_stride_n = p.v_stride_n = kFlashHeadSize;
  p.k_stride_h = p.v_stride_h = static_cast<int64_t>(c.page_size) * kFlashHeadSize;
  p.k_page_stride = p.v_page_stride = p.k_stride_h * c.num_kv_heads;
  p.nnz_qo = a.batch->num_tokens;
  p.num_qo_heads = c.num_heads;
  p.num_kv_heads = c.num_kv_heads;
  p.group_size = c.num_heads / c.num_kv_heads;
  p.page_size = c.page_size;
  p.window_left = -1;
  p.causal = true;
  const cudaError_t error = flashinfer::BatchPrefillWithPagedKVCacheDispatched<
      kFlashHeadSize, kFlashHeadSize, flashinfer::MaskMode::kCausal,
      /*LEFT_SLIDING_WINDOW=*/false, /*SAME_SCHEDULE_FOR_ALL_HEADS=*/false,
      flashinfer::StandardAttention>(p, /*enable_pdl=*/false, stream);
  return CudaStatus(error, "FlashAttention-3 prefill");
}

}  // namespace penstock::kernels::cuda
