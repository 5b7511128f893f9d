// The tensor element types of GGML that a GGUF file may name, and how each lies in memory.
// Source: the GGUF specification (docs/gguf.md of the ggml project).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace penstock {

// Values are the codes in the file.
enum class GgmlType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kI8 = 24,
  kI16 = 25,
  kI32 = 26,
  kI64 = 27,
  kF64 = 28,
  kBF16 = 30,
};

// A row is a sequence of blocks: `block_size` elements stored in `block_bytes` bytes.
struct GgmlTypeInfo {
  GgmlType type;
  std::string_view name;
  uint32_t block_size;
  uint32_t block_bytes;
};

// Null if Penstock can't read the type with this code.
const GgmlTypeInfo* FindGgmlType(uint32_t code);

// `type` must be one of the enumerators.
const GgmlTypeInfo& GetGgmlTypeInfo(GgmlType type);

// The names of all types above, for error messages.
std::string GgmlTypeNames();

}  // namespace penstock
