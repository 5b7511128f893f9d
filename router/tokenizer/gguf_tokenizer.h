// A tokeniser's description from a GGUF's tokenizer.ggml.* metadata: byte-level BPE.
#pragma once

#include "absl/status/statusor.h"
#include "common/formats/gguf.h"
#include "router/tokenizer/tokenizer_description.h"

namespace penstock::router {

// InvalidArgument, naming the file and what is wrong, for a tokeniser that is absent, of a kind
// that Penstock doesn't know, or doesn't fit together. Needs the file during the call alone.
absl::StatusOr<TokenizerDescription> ReadGgufTokenizer(const GgufFile& file);

}  // namespace penstock::router
