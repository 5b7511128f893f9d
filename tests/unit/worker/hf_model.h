// A small Hugging Face checkpoint for tests: a folder with config.json and random BF16 weights.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/unit/common/formats/model_folder.h"

namespace penstock::worker {

class HfModel {
 public:
  HfModel();

  // What Write writes; tests change it before.
  struct Tensor {
    std::string dtype = "BF16";
    std::vector<uint64_t> shape;  // outermost first
  };
  nlohmann::json config;
  std::map<std::string, Tensor> tensors;

  // The folder's path.
  std::string WriteConfig();
  std::string Write();
  // The tensors that the configuration asks for, in BF16: norms of ones, matrices normal with
  // deviation scale / sqrt(columns), 3 for the embeddings and sqrt(3) for Q and K, so that
  // attention heeds few of many ids. Ties the embeddings. Seeded.
  std::string WriteNormal();

 private:
  ModelFolder folder_;
};

}  // namespace penstock::worker
