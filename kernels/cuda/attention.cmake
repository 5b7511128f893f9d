penstock_library(kernels_cuda_attention
                 SOURCES attention.cc attention_decode.cu attention_prefill.cu attention_prefill_plan.cc attention_flash_none.cc
                 DEPS common CUDA::cudart)
# nvcc's front end can't evaluate fmt's check of format strings; g++ checks those of the .cc files.
target_compile_definitions(kernels_cuda_attention PRIVATE
                           $<$<COMPILE_LANGUAGE:CUDA>:FMT_CONSTEVAL= FMT_USE_CONSTEXPR=1>)
