# What runs in guests. The first makes the guest for all.
add_test(NAME vm_guest COMMAND ${CMAKE_SOURCE_DIR}/tests/vm/guest-test.sh ${CMAKE_BINARY_DIR}/vm)
set_tests_properties(vm_guest PROPERTIES LABELS vm TIMEOUT 600 SKIP_RETURN_CODE 77 RUN_SERIAL TRUE)

# The tests that the TCP transport passes, over queue pairs of one soft-RoCE device, with certificates.
kvc_vm_test(verbs_transport --certs --seconds 900 --program $<TARGET_FILE:tcp_test> --
  "rdma-devices && KVC_TEST_TRANSPORT=verbs KVC_TEST_HOST=10.77.0.1 KVC_TEST_CERTS=/certs tcp_test --gtest_filter=TcpTest.*")
