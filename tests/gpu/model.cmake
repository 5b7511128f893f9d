# The worker end to end. On a machine without a GPU CTest runs the small part on the CPU, so that the test itself
# can't rot.
if(TARGET worker_golden_engine)
  penstock_gpu_test(cuda_model_test SOURCES model_test.cc bad_start_test.cc model_device.cc
                    DEPS worker_golden_engine worker_hf_model)
  add_test(NAME cuda_model_test_on_cpu COMMAND cuda_model_test --gtest_filter=*TinyGolden*:BadStart.NoGpu)
  set_tests_properties(cuda_model_test_on_cpu PROPERTIES LABELS golden TIMEOUT 300
                       ENVIRONMENT PENSTOCK_TEST_DEVICE=cpu)
endif()

add_library(cuda_fault MODULE cuda_fault.cc)
target_include_directories(cuda_fault PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
set_target_properties(cuda_fault PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_RUNTIME_OUTPUT_DIRECTORY})
if(TARGET cuda_model_test)
  add_dependencies(cuda_model_test cuda_fault)
endif()
