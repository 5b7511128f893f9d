// Reads what the router needs of a model: its tokeniser, chat template and limits. Not its weights.
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
};

// NotFound if there is nothing at the path or a file is missing; InvalidArgument or Unimplemented,
// naming the file, if it is damaged or of a kind that Penstock doesn't know.
absl::StatusOr<ServedModel> LoadModel(const LoadModelOptions& options);

}  // namespace penstock::router
