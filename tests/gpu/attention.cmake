penstock_gpu_test(cuda_attention_test SOURCES attention_test.cc attention_case.cc DEPS kernels_cuda_attention Threads::Threads)
