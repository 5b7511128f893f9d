#include "kernels/reference/reference_ops.h"

#include <cmath>
#include <limits>

namespace penstock::kernels::reference {

Matrix AddRmsNorm(const Matrix& x, std::span<const float> weight, double epsilon,
                  Matrix* residual) {
  Matrix out = *residual;
  for (int64_t t = 0; t < out.rows; ++t) {
    double squares = 0;
    for (int64_t i = 0; i < out.cols; ++i) {
      residual->at(t, i) += x.at(t, i);
      squares += residual->at(t, i) * residual->at(t, i);
    }
    const double rms = std::sqrt(squares / static_cast<double>(out.cols) + epsilon);
    for (int64_t i = 0; i < out.cols; ++i) out.at(t, i) = residual->at(t, i) / rms * weight[i];
  }
  return out;
}

Matrix GatedActivation(const Matrix& x) {
  const int64_t width = x.cols / 2;
  Matrix out{x.rows, width, std::vector<double>(x.rows * width)};
  for (int64_t t = 0; t < x.rows; ++t) {
    for (int64_t f = 0; f < width; ++f) {
      const double gate = x.at(t, f);
      out.at(t, f) = gate / (1 + std::exp(-gate)) * x.at(t, width + f);
    }
  }
  return out;
}

void Rope(std::span<double> head, int rotary_size, bool interleaved,
          std::span<const double> angles) {
  const int half = rotary_size / 2;
  for (int i = 0; i < half; ++i) {
    double& a = head[interleaved ? 2 * i : i];
    double& b = head[interleaved ? 2 * i + 1 : i + half];
    const double x = a;
    const double y = b;
    a = x * std::cos(angles[i]) - y * std::sin(angles[i]);
    b = x * std::sin(angles[i]) + y * std::cos(angles[i]);
  }
}

Matrix Attention(const Matrix& q, const Matrix& k, const Matrix& v, double scale) {
  Matrix out{q.rows, q.cols, std::vector<double>(q.rows * q.cols)};
  for (int64_t t = 0; t < q.rows; ++t) {
    const int64_t visible = k.rows - q.rows + t + 1;
    std::vector<double> weights(visible);
    double most = -std::numeric_limits<double>::infinity();
    for (int64_t i = 0; i < visible; ++i) {
      for (int64_t e = 0; e < q.cols; ++e) weights[i] += q.at(t, e) * k.at(i, e) * scale;
      most = std::max(most, weights[i]);
    }
    double sum = 0;
    for (double& weight : weights) sum += weight = std::exp(weight - most);
    for (int64_t i = 0; i < visible; ++i) {
      for (int64_t e = 0; e < q.cols; ++e) out.at(t, e) += weights[i] / sum * v.at(i, e);
    }
  }
  return out;
}

}  // namespace penstock::kernels::reference
