penstock_library(kernels_cuda_ops SOURCES norm.cu rope.cu elementwise.cu staging.cu sampler.cu
                                          sampler_pack.cc
                 DEPS common CUDA::cudart)
# nvcc's front end can't evaluate fmt's check of format strings; g++ checks those of the .cc files.
target_compile_definitions(kernels_cuda_ops PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:FMT_CONSTEVAL= FMT_USE_CONSTEXPR=1>)
