# Parsers on any bytes. Each target runs a while as a test; with libFuzzer: tests/fuzz/libfuzzer.sh.
function(kvc_fuzz name)
  add_executable(${name} ${CMAKE_SOURCE_DIR}/tests/fuzz/${name}.cc ${CMAKE_SOURCE_DIR}/tests/fuzz/fuzz_main.cc)
  target_link_libraries(${name} PRIVATE ${ARGN})
  add_test(NAME ${name} COMMAND ${name} --runs 20000)
  set_tests_properties(${name} PROPERTIES LABELS fuzz TIMEOUT 600)
endfunction()

kvc_fuzz(frame_parser_fuzz kvcfs_rdma)
kvc_fuzz(message_fuzz kvcfs_rdma)
kvc_fuzz(cluster_message_fuzz kvcfs_meta)
kvc_fuzz(stored_bytes_fuzz kvcfs_fs)
kvc_fuzz(text_fuzz kvcfs_tools)
