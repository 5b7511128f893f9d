// Reads what the router needs of a model: its tokeniser, chat template, limits and sampling
// defaults. Not its weights.
#pragma once

#include <string>
#include <vector>

#include "common/status.h"
#include "router/service/service.h"

namespace penstock::router {

struct LoadModelOptions {
  std::string path;                // a GGUF file, or the folder of a Hugging Face checkpoint
  std::vector<std::string> names;  // that it is served under; none: the file's or folder's
  // A folder may lack a tokeniser: then clients speak token ids.
  bool tokenizer_optional = false;
  // What requests leave out is as a folder's generation_config.json says. GGUF files say nothing.
  bool use_generation_config = true;
};

// NotFound if there is nothing at the path or a file is missing; InvalidArgument or Unimplemented,
// naming the file, if it is damaged or of a kind that Penstock doesn't know.
absl::StatusOr<ServedModel> LoadModel(const LoadModelOptions& options);

}  // namespace penstock::router
