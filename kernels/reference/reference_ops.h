// The ops as plain loops in double precision, for tests. Obviously right, never fast.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace penstock::kernels::reference {

// Row-major [rows, cols].
struct Matrix {
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<double> values;
  double& at(int64_t r, int64_t c) { return values[r * cols + c]; }
  double at(int64_t r, int64_t c) const { return values[r * cols + c]; }
};

// residual += x; returns residual / rms(residual) * weight.
Matrix AddRmsNorm(const Matrix& x, std::span<const float> weight, double epsilon, Matrix* residual);

// silu(x[t][f]) * x[t][F + f]
Matrix GatedActivation(const Matrix& x);

// Rotates a head in place; angle i is `angles[i]` of rotary_size / 2.
void Rope(std::span<double> head, int rotary_size, bool interleaved,
          std::span<const double> angles);

// One head's causal attention: q [n, E] are the last n of the positions of k, v [context, E].
Matrix Attention(const Matrix& q, const Matrix& k, const Matrix& v, double scale);

}  // namespace penstock::kernels::reference
