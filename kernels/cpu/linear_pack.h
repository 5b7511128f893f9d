// Packs matrices into the forms of linear_kernels.h, and reads rows back.
//
// Exactness: every quantised form holds the format's own codes and its scales and minimums without
// rounding (float16 where the format has them as such, else float32 products), so a row read back
// is the same bits as Dequantize() gives. Bytes a weight: Q4_0 4.5/8, Q4_1 5/8, Q5_0 and
// Q8_0 8.5/8, Q5_1 9/8, Q4_K 6/8, Q5_K and Q6_K 10/8. kFloat and kHalf are exact too; kBFloat16
// rounds F16 and F32 to nearest even.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cpu/linear_kernels.h"
#include "kernels/ops.h"

namespace penstock::kernels::cpu {

// Memory for packed weights: zeroed, on huge pages where the system has them (at batch 1 a quarter
// of the time would go to page walks). Weights share regions of 32 MiB, one after the other; a
// region goes with its last weight.
class PackArena {
 public:
  struct Block {
    uint8_t* data = nullptr;  // aligned to 64 bytes
    std::shared_ptr<void> owner;
  };
  // RESOURCE_EXHAUSTED says how much was asked for.
  absl::StatusOr<Block> Allocate(size_t bytes);

 private:
  std::shared_ptr<uint8_t> region_;
  size_t size_ = 0;
  size_t used_ = 0;
};

// Rows of one form. `rows` needn't be a multiple of 16: the last group is then part empty.
struct PackedRows {
  Form form = Form::kFloat;
  Activations activations = Activations::kInt16;  // for quantised forms
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t group_bytes = 0;
  const uint8_t* data = nullptr;
  std::shared_ptr<void> owner;
};

// The form for a format in the fast mode. `exact`: no rounding, since rows will be read back as
// embeddings.
Form FastForm(WeightFormat format, int64_t cols, bool exact);

int64_t PackedGroupBytes(Form form, int64_t cols);

// What QuantizeArgs wants to know of a quantised form.
int32_t ZeroOf(Form form);
int32_t GroupOf(Form form);

// Packs rows [16 * group, + 16) of the segment, less where it ends, to `out` (zeroed,
// PackedGroupBytes long).
void PackGroup(const WeightSegment& segment, Form form, int64_t group, uint8_t* out);

// row[0 .. cols) = row `index` as float32.
void UnpackRow(const PackedRows& packed, int64_t index, float* row);

}  // namespace penstock::kernels::cpu
