penstock_library(kernels_cuda_attention
                 SOURCES attention.cc attention_decode.cu attention_prefill.cu attention_prefill_plan.cc
                 DEPS common CUDA::cudart)

# FlashAttention-3 needs wgmma, so sm_90a, and its file is compiled for that alone; its headers come from tools/deps.
if("90a" IN_LIST PENSTOCK_CUDA_ARCHS)
  set(PENSTOCK_GPU_HEADERS "" CACHE PATH "FlashInfer's headers; empty: tools/deps/gpu-headers fetches them")
  if(NOT PENSTOCK_GPU_HEADERS)
    execute_process(COMMAND ${CMAKE_SOURCE_DIR}/tools/deps/gpu-headers
                    OUTPUT_VARIABLE gpu_headers OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE failed)
    if(failed)
      message(FATAL_ERROR "The CUDA engine's headers could not be fetched (above). Give their folder with "
                          "-DPENSTOCK_GPU_HEADERS=FOLDER, or build without a GPU: -DPENSTOCK_CUDA=OFF")
    endif()
  else()
    set(gpu_headers ${PENSTOCK_GPU_HEADERS})
  endif()
  if(NOT EXISTS ${gpu_headers}/include/flashinfer/attention/hopper/prefill_sm90.cuh)
    message(FATAL_ERROR "${gpu_headers} has not FlashInfer's headers: tools/deps/gpu-headers makes a folder that has")
  endif()
  add_library(kernels_cuda_flash OBJECT attention_flash.cu)
  target_link_libraries(kernels_cuda_flash PUBLIC common CUDA::cudart)
  # CCCL before the toolkit's own, which lacks what the headers use.
  target_include_directories(
    kernels_cuda_flash SYSTEM BEFORE
    PRIVATE ${gpu_headers}/cccl/libcudacxx/include ${gpu_headers}/cccl/cub ${gpu_headers}/cccl/thrust
            ${gpu_headers}/cutlass/include ${gpu_headers}/cutlass/tools/util/include ${gpu_headers}/include)
  target_compile_definitions(kernels_cuda_flash PRIVATE FMT_CONSTEVAL= FMT_USE_CONSTEXPR=1)
  target_compile_options(kernels_cuda_flash PRIVATE --diag-suppress=20012) # CUTLASS's defaulted functions
  set_target_properties(kernels_cuda_flash PROPERTIES CUDA_ARCHITECTURES 90a-real)
  target_sources(kernels_cuda_attention PRIVATE $<TARGET_OBJECTS:kernels_cuda_flash>)
else()
  target_sources(kernels_cuda_attention PRIVATE ${CMAKE_CURRENT_LIST_DIR}/attention_flash_none.cc)
endif()

# nvcc's front end can't evaluate fmt's check of format strings; g++ checks those of the .cc files.
target_compile_definitions(kernels_cuda_attention PRIVATE
                           $<$<COMPILE_LANGUAGE:CUDA>:FMT_CONSTEVAL= FMT_USE_CONSTEXPR=1>)
