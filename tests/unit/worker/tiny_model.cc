#include "tests/unit/worker/tiny_model.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "common/log.h"

namespace penstock::worker {
namespace {

constexpr uint32_t kF32 = 0, kQ8_0 = 8;
constexpr float kEpsilon = 1e-5f;
constexpr double kTheta = 10000;

std::string FloatBytes(const std::vector<double>& row) {
  std::string bytes;
  for (const double value : row) bytes += GgufBuilder::Bytes(static_cast<float>(value));
  return bytes;
}

// A power of two as an IEEE half, so that scales are exact.
uint16_t HalfPowerOfTwo(int exponent) { return static_cast<uint16_t>((exponent + 15) << 10); }

// Q8_0 with a scale of 2^-9 throughout; rounds `row` to what is stored.
std::string Q8Bytes(std::vector<double>* row) {
  std::string bytes;
  for (size_t begin = 0; begin < row->size(); begin += 32) {
    bytes += GgufBuilder::Bytes(HalfPowerOfTwo(-9));
    for (size_t i = begin; i < begin + 32; ++i) {
      const double quant = std::clamp(std::round((*row)[i] * 512), -127.0, 127.0);
      bytes += GgufBuilder::Bytes(static_cast<int8_t>(quant));
      (*row)[i] = quant / 512;
    }
  }
  return bytes;
}

}  // namespace

TinyModel::TinyModel(const TinyConfig& config) : config_(config), random_(config.seed) {
  const TinyConfig& c = config;
  keys = {{"llama.block_count", c.layers},
          {"llama.embedding_length", c.hidden},
          {"llama.feed_forward_length", c.mlp},
          {"llama.context_length", c.context},
          {"llama.attention.head_count", c.heads},
          {"llama.attention.head_count_kv", c.kv_heads},
          {"llama.attention.key_length", c.head_size},
          {"llama.attention.value_length", c.head_size},
          {"llama.rope.dimension_count", c.rotary}};
  Add("token_embd.weight", c.vocab, c.hidden, 0.2);
  AddVector("output_norm.weight", c.hidden, 1, 0.1);
  if (!c.tied) Add("output.weight", c.vocab, c.hidden, 0.1);
  if (c.rope_factors) AddVector("rope_freqs.weight", c.rotary / 2, 2, 0.3);
  for (int layer = 0; layer < c.layers; ++layer) {
    const std::string prefix = fmt::format("blk.{}.", layer);
    AddVector(prefix + "attn_norm.weight", c.hidden, 1, 0.1);
    AddVector(prefix + "ffn_norm.weight", c.hidden, 1, 0.1);
    const int q = c.heads * c.head_size, kv = c.kv_heads * c.head_size;
    Add(prefix + "attn_q.weight", q, c.hidden, 0.08);
    Add(prefix + "attn_k.weight", kv, c.hidden, 0.08);
    Add(prefix + "attn_v.weight", kv, c.hidden, 0.08);
    Add(prefix + "attn_output.weight", c.hidden, q, 0.08);
    Add(prefix + "ffn_gate.weight", c.mlp, c.hidden, 0.08);
    Add(prefix + "ffn_up.weight", c.mlp, c.hidden, 0.08);
    Add(prefix + "ffn_down.weight", c.hidden, c.mlp, 0.08);
    if (!c.biases) continue;
    AddVector(prefix + "attn_q.bias", q, 0, 0.3);
    AddVector(prefix + "attn_k.bias", kv, 0, 0.3);
    AddVector(prefix + "attn_v.bias", kv, 0, 0.3);
    AddVector(prefix + "attn_output.bias", c.hidden, 0, 0.3);
  }
}

TinyModel::~TinyModel() {
  if (!path_.empty()) unlink(path_.c_str());
}

double TinyModel::Random() {
  double sum = 0;
  for (int i = 0; i < 6; ++i) {
    random_ = random_ * 6364136223846793005u + 1442695040888963407u;
    sum += static_cast<double>(random_ >> 33) / static_cast<double>(1u << 31) - 0.5;
  }
  return sum * std::sqrt(2.0);
}

void TinyModel::Add(const std::string& name, int rows, int cols, double scale) {
  Matrix& matrix = values_[name];
  std::string data;
  for (int r = 0; r < rows; ++r) {
    std::vector<double>& row = matrix.emplace_back();
    for (int c = 0; c < cols; ++c) row.push_back(static_cast<float>(Random() * scale));
    data += config_.q8_0 ? Q8Bytes(&row) : FloatBytes(row);
  }
  tensors[name] = {config_.q8_0 ? kQ8_0 : kF32,
                   {static_cast<uint64_t>(cols), static_cast<uint64_t>(rows)},
                   std::move(data)};
}

void TinyModel::AddVector(const std::string& name, int size, double mean, double scale) {
  std::vector<double> row;
  row.reserve(size);
  for (int i = 0; i < size; ++i) row.push_back(static_cast<float>(mean + Random() * scale));
  tensors[name] = {kF32, {static_cast<uint64_t>(size)}, FloatBytes(row)};
  values_[name] = {std::move(row)};
}

std::string TinyModel::Build() const {
  GgufBuilder builder;
  builder.Str("general.architecture", architecture);
  for (const auto& [key, value] : keys) builder.U32(key, value);
  builder.F32("llama.attention.layer_norm_rms_epsilon", kEpsilon);
  builder.F32("llama.rope.freq_base", static_cast<float>(kTheta));
  for (const auto& [name, tensor] : tensors) {
    builder.Tensor(name, tensor.type, tensor.dims, tensor.data);
  }
  return builder.Build();
}

const std::string& TinyModel::WriteFile() {
  static std::atomic<int> number{0};
  path_ = std::filesystem::temp_directory_path() /
          fmt::format("tiny-{}-{}.gguf", getpid(), number.fetch_add(1));
  std::ofstream(path_, std::ios::binary) << Build();
  return path_;
}

std::vector<double> TinyModel::Apply(const std::string& name, const std::vector<double>& x) const {
  const Matrix& matrix = values_.at(name + ".weight");
  std::vector<double> y(matrix.size());
  for (size_t r = 0; r < matrix.size(); ++r) {
    for (size_t c = 0; c < x.size(); ++c) y[r] += matrix[r][c] * x[c];
  }
  const auto bias = values_.find(name + ".bias");
  for (size_t r = 0; bias != values_.end() && r < y.size(); ++r) y[r] += bias->second[0][r];
  return y;
}

std::vector<double> TinyModel::Norm(const std::string& name, const std::vector<double>& x) const {
  double square = 0;
  for (const double value : x) square += value * value;
  const double scale = 1 / std::sqrt(square / static_cast<double>(x.size()) + kEpsilon);
  std::vector<double> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = x[i] * scale * values_.at(name + ".weight")[0][i];
  return y;
}

void TinyModel::Rotate(std::vector<double>* x, int heads, int position) const {
  for (int head = 0; head < heads; ++head) {
    for (int i = 0; i < config_.rotary / 2; ++i) {
      double angle = position * std::pow(kTheta, -2.0 * i / config_.rotary);
      if (config_.rope_factors) angle /= values_.at("rope_freqs.weight")[0][i];
      double& a = (*x)[head * config_.head_size + 2 * i];
      double& b = (*x)[head * config_.head_size + 2 * i + 1];
      const double rotated = a * std::cos(angle) - b * std::sin(angle);
      b = a * std::sin(angle) + b * std::cos(angle);
      a = rotated;
    }
  }
}

void TinyModel::Attend(int layer, std::vector<std::vector<double>>* residual) const {
  const std::string prefix = fmt::format("blk.{}.", layer);
  std::vector<std::vector<double>> keys, values;
  const int size = config_.head_size;
  for (size_t t = 0; t < residual->size(); ++t) {
    const std::vector<double> x = Norm(prefix + "attn_norm", (*residual)[t]);
    std::vector<double> q = Apply(prefix + "attn_q", x);
    keys.push_back(Apply(prefix + "attn_k", x));
    values.push_back(Apply(prefix + "attn_v", x));
    Rotate(&q, config_.heads, static_cast<int>(t));
    Rotate(&keys.back(), config_.kv_heads, static_cast<int>(t));
    std::vector<double> out(q.size());
    for (int head = 0; head < config_.heads; ++head) {
      const int kv = head / (config_.heads / config_.kv_heads);
      std::vector<double> weight;
      double sum = 0;
      for (size_t s = 0; s <= t; ++s) {
        double score = 0;
        for (int i = 0; i < size; ++i) score += q[head * size + i] * keys[s][kv * size + i];
        weight.push_back(std::exp(score / std::sqrt(size)));
        sum += weight.back();
      }
      for (size_t s = 0; s <= t; ++s) {
        for (int i = 0; i < size; ++i) {
          out[head * size + i] += weight[s] / sum * values[s][kv * size + i];
        }
      }
    }
    const std::vector<double> o = Apply(prefix + "attn_output", out);
    for (size_t i = 0; i < o.size(); ++i) (*residual)[t][i] += o[i];
  }
}

void TinyModel::Mlp(int layer, std::vector<double>* residual) const {
  const std::string prefix = fmt::format("blk.{}.", layer);
  const std::vector<double> x = Norm(prefix + "ffn_norm", *residual);
  std::vector<double> gate = Apply(prefix + "ffn_gate", x);
  const std::vector<double> up = Apply(prefix + "ffn_up", x);
  for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
  const std::vector<double> down = Apply(prefix + "ffn_down", gate);
  for (size_t i = 0; i < down.size(); ++i) (*residual)[i] += down[i];
}

std::vector<std::vector<double>> TinyModel::LogProbs(const std::vector<int32_t>& ids) const {
  std::vector<std::vector<double>> residual;
  residual.reserve(ids.size());
  for (const int32_t id : ids) residual.push_back(values_.at("token_embd.weight")[id]);
  for (int layer = 0; layer < config_.layers; ++layer) {
    Attend(layer, &residual);
    for (std::vector<double>& row : residual) Mlp(layer, &row);
  }
  std::vector<std::vector<double>> result;
  for (const std::vector<double>& row : residual) {
    std::vector<double> logits =
        Apply(config_.tied ? "token_embd" : "output", Norm("output_norm", row));
    double sum = 0;
    for (const double logit : logits) sum += std::exp(logit);
    for (double& logit : logits) logit -= std::log(sum);
    result.push_back(std::move(logits));
  }
  return result;
}

}  // namespace penstock::worker
