// Builds without FlashAttention-3: no sm_90a among the architectures.
#include "common/status.h"
#include "kernels/cuda/attention_prefill.h"

namespace penstock::kernels::cuda {

int32_t FlashTileQueries(int32_t) { return 0; }
absl::Status FlashPrefill(const PrefillConfig&, const PrefillItems&, const AttentionParams&,
                          cudaStream_t) {
  return Unimplemented("this build has no FlashAttention-3");
}

}  // namespace penstock::kernels::cuda
