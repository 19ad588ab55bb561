# What runs in guests. The first makes the guest for all.
add_test(NAME vm_guest COMMAND ${CMAKE_SOURCE_DIR}/tests/vm/guest-test.sh ${CMAKE_BINARY_DIR}/vm)
set_tests_properties(vm_guest PROPERTIES LABELS vm TIMEOUT 600 SKIP_RETURN_CODE 77 RUN_SERIAL TRUE)

