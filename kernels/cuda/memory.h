// Memory of the GPU, and pinned memory of the host, as kernels::Buffer.
#pragma once

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/ops.h"

namespace penstock::kernels::cuda {

// On the current device; not initialised. RESOURCE_EXHAUSTED says how much is missing and what to
// do.
absl::StatusOr<std::unique_ptr<Buffer>> AllocateDevice(size_t bytes);

// Host memory that the device can read and write at its own address, and that copies need not
// stage.
absl::StatusOr<std::unique_ptr<Buffer>> AllocatePinned(size_t bytes);

// Of the current device.
absl::StatusOr<DeviceMemory> QueryMemory();

}  // namespace penstock::kernels::cuda
