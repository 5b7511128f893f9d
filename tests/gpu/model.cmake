# The worker end to end. On a machine without a GPU CTest runs the small part on the CPU, so that the test itself
# can't rot.
if(TARGET worker_golden_engine)
  penstock_gpu_test(cuda_model_test SOURCES model_test.cc bad_start_test.cc model_device.cc
                    DEPS worker_golden_engine worker_hf_model)
  add_test(NAME cuda_model_test_on_cpu COMMAND cuda_model_test --gtest_filter=*TinyGolden*:BadStart.NoGpu)
  set_tests_properties(cuda_model_test_on_cpu PROPERTIES LABELS golden TIMEOUT 300
                       ENVIRONMENT PENSTOCK_TEST_DEVICE=cpu)
endif()
