// Measured choices of how to run a linear, on disk. One text file for a kind of GPU and version of
// cuBLAS: the header line, then a line a choice:
//   n k output k_segments tokens stream <variant> <us>
//   n k output k_segments tokens lt <128 hex digits> <us>
// A file that is not exactly so is no file: choices are measured anew. Host code alone.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/linear.h"

namespace penstock::kernels::cuda {

struct LinearChoice {
  std::string stream;                   // the variant's name (linear_stream.h); empty: cuBLASLt
  std::array<uint64_t, 8> algorithm{};  // LtAlgorithm
  float us = 0;                         // as measured
  friend bool operator==(const LinearChoice&, const LinearChoice&) = default;
};
using LinearChoices = std::map<std::pair<LinearShape, int32_t>, LinearChoice>;  // by tokens

std::string FormatChoices(std::string_view header, const LinearChoices& choices);
// INVALID_ARGUMENT names the line that is wrong; another header is one.
absl::StatusOr<LinearChoices> ParseChoices(std::string_view text, std::string_view header);

// Empty without a file, and with one that is not right, which is logged.
LinearChoices LoadChoices(const std::string& path, std::string_view header);
// Makes the folders and replaces the file at once, so that no reader sees half of it. UNAVAILABLE
// if the disk refuses.
absl::Status SaveChoices(const std::string& path, std::string_view header,
                         const LinearChoices& choices);

// $XDG_CACHE_HOME or ~/.cache, + /penstock/cublaslt; empty if there is neither.
std::string DefaultCacheDirectory();

}  // namespace penstock::kernels::cuda
