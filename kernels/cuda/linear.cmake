# What needs no GPU: tested with the unit tests.
penstock_library(kernels_cuda_linear_cache SOURCES linear_cache.cc DEPS common CUDA::cudart)
penstock_library(kernels_cuda_linear
                 SOURCES linear.cc linear_bias.cu linear_lt.cc linear_measure.cc linear_stream.cu
                 DEPS kernels_cuda_linear_cache kernels_cuda_ops common CUDA::cudart CUDA::cublasLt)
# nvcc's front end can't evaluate fmt's check of format strings; g++ checks those of the .cc files.
target_compile_definitions(kernels_cuda_linear PRIVATE
                           $<$<COMPILE_LANGUAGE:CUDA>:FMT_CONSTEVAL= FMT_USE_CONSTEXPR=1>)
