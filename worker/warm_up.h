// Runs steps of every size before the first request: kernels are loaded, libraries have chosen
// theirs, and steps of single-token rows are captured.
#pragma once

#include "absl/status/status.h"
#include "kernels/ops.h"
#include "worker/model/decoder.h"

namespace penstock::worker {

struct WarmUpLimits {
  int max_tokens = 0;  // of a step
  int max_rows = 0;
  int max_model_len = 0;
  int page_size = 0;
};

// Before any slot is bound. The steps write page 0 and the token table's unbound slots. Does
// nothing where ops run inside their calls.
absl::Status WarmUp(kernels::Backend* backend, Decoder* decoder, const WarmUpLimits& limits,
                    kernels::TokenTable tokens);

}  // namespace penstock::worker
