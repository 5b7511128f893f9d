// Small random llama models for tests: as a GGUF file, and as a plain forward pass to compare with.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/formats/gguf.h"
#include "tests/unit/common/formats/gguf_builder.h"

namespace penstock::worker {

struct TinyConfig {
  int layers = 2, hidden = 64, heads = 4, kv_heads = 2, head_size = 32, mlp = 128, vocab = 96;
  int context = 128;
  int rotary = 32;
  bool tied = true;
  bool biases = false;
  bool rope_factors = false;
  bool q8_0 = false;  // matrices as Q8_0 instead of F32
  uint32_t seed = 1;
};

class TinyModel {
 public:
  explicit TinyModel(const TinyConfig& config);

  // `change` may alter what is written (keys and tensors by name) before it is.
  struct Tensor {
    uint32_t type;
    std::vector<uint64_t> dims;
    std::string data;
  };
  std::map<std::string, uint32_t> keys;
  std::map<std::string, Tensor> tensors;
  std::string architecture = "llama";

  std::string Build() const;
  // A file that goes when the object does.
  const std::string& WriteFile();
  ~TinyModel();

  // Log-probabilities after each of the ids: [ids, vocab]. In double, straight from the definition.
  std::vector<std::vector<double>> LogProbs(const std::vector<int32_t>& ids) const;

 private:
  using Matrix = std::vector<std::vector<double>>;
  void Add(const std::string& name, int rows, int cols, double scale);
  void AddVector(const std::string& name, int size, double mean, double scale);
  std::vector<double> Apply(const std::string& name, const std::vector<double>& x) const;
  std::vector<double> Norm(const std::string& name, const std::vector<double>& x) const;
  void Rotate(std::vector<double>* x, int heads, int position) const;
  void Attend(int layer, std::vector<std::vector<double>>* residual) const;
  void Mlp(int layer, std::vector<double>* residual) const;

  const TinyConfig config_;
  uint64_t random_;
  double Random();  // about normal
  std::map<std::string, Matrix> values_;
  std::string path_;
};

}  // namespace penstock::worker
