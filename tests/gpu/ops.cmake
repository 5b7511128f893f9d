penstock_gpu_test(cuda_ops_test SOURCES ops_test.cc DEPS kernels_cuda_ops kernels_reference Threads::Threads)
penstock_gpu_test(cuda_sampling_test SOURCES sampling_test.cc
                  DEPS kernels_cuda_ops kernels_reference Threads::Threads)
