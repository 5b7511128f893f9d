// Preloaded into a worker: once the file that PENSTOCK_CUDA_FAULT names is there, the next wait for
// a step removes it and reports what the CUDA runtime reports of a kernel that ran wild. For
// serve_test.py.
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>

extern "C" cudaError_t CUDARTAPI cudaEventSynchronize(cudaEvent_t event) {
  const char* const trigger = std::getenv("PENSTOCK_CUDA_FAULT");
  if (trigger != nullptr && unlink(trigger) == 0) return cudaErrorIllegalAddress;
  static const auto real =
      reinterpret_cast<decltype(&cudaEventSynchronize)>(dlsym(RTLD_NEXT, "cudaEventSynchronize"));
  return real(event);
}
