# The linear kernels: one file for each instruction set, picked at run time. Always optimised: an inline function that
# is left as a call could be merged by the linker with one compiled for a CPU without these instructions. Contraction is
# off so that every fused multiply-add is one we wrote.
set(linear_isa_avx2 -mavx2 -mfma -mf16c)
# GCC 12 warns of uninitialised values inside its own AVX-512 headers.
set(linear_isa_avx512 ${linear_isa_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni
    -Wno-maybe-uninitialized -Wno-uninitialized ${avx512_asan})
set(linear_isa_avx512_bf16 ${linear_isa_avx512} -mavx512bf16)
foreach(isa scalar avx2 avx512 avx512_bf16)
  set_source_files_properties(linear_${isa}.cc PROPERTIES COMPILE_OPTIONS
                              "-O3;-ffp-contract=off;${linear_isa_${isa}}")
endforeach()
set_source_files_properties(dequantize.cc linear_pack.cc PROPERTIES COMPILE_OPTIONS "-ffp-contract=off")

penstock_library(kernels_cpu_linear
  SOURCES dequantize.cc linear.cc linear_avx2.cc linear_avx512.cc linear_avx512_bf16.cc linear_multiply.cc
          linear_pack.cc linear_scalar.cc thread_pool.cc
  DEPS common Threads::Threads absl::status absl::statusor fmt::fmt)
