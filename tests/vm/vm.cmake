# Tests in a guest with soft-RoCE, FUSE and NVMe (README.md): kvc_vm_test(NAME OPTIONS... -- COMMAND).
# Exit 77, with a reason, where there can be no guest. Not under sanitizers, which a guest without KVM is too slow for.
function(kvc_vm_test name)
  add_test(NAME vm_${name} COMMAND ${CMAKE_SOURCE_DIR}/tests/vm/run-guest.sh ${CMAKE_BINARY_DIR}/vm ${ARGN})
  set_tests_properties(vm_${name} PROPERTIES LABELS vm TIMEOUT 1500 SKIP_RETURN_CODE 77 RUN_SERIAL TRUE)
endfunction()

if(NOT KVC_SANITIZE)
  include(vm/guests.cmake)
endif()
