# Integration tests, through a real mount: kvc_test(integration integration/<what>_test kvcfs_test_mount)
add_library(kvcfs_test_mount STATIC
  ${CMAKE_CURRENT_LIST_DIR}/calls.cc
  ${CMAKE_CURRENT_LIST_DIR}/engine_fixture.cc
  ${CMAKE_CURRENT_LIST_DIR}/host_network.cc
  ${CMAKE_CURRENT_LIST_DIR}/mount_fixture.cc
  ${CMAKE_CURRENT_LIST_DIR}/server_fixture.cc)
target_link_libraries(kvcfs_test_mount PUBLIC kvcfs_base fmt::fmt GTest::gtest PkgConfig::URING
                                              nlohmann_json::nlohmann_json)
target_compile_definitions(kvcfs_test_mount PRIVATE KVC_COMMAND="${CMAKE_BINARY_DIR}/kvcfs")
if(TARGET kvcfs)
  add_dependencies(kvcfs_test_mount kvcfs)
endif()

foreach(test
    deployment_test
    engine_lmcache_test
    engine_pool_test
    engine_pressure_test
    engine_sglang_test
    engine_ucm_aibrix_test
    engine_vllm_test
    semantics_attributes_test
    semantics_dropping_test
    semantics_files_test
    semantics_listing_test
    semantics_match_test
    semantics_names_test
    semantics_statfs_test
    semantics_using_test
    semantics_writing_test
    shell_tools_test)
  kvc_test(integration integration/${test} kvcfs_test_mount)
endforeach()

# The paper's experiment, small; needs no mount.
kvc_test(integration integration/paper_test nlohmann_json::nlohmann_json)
add_dependencies(paper_test kvcfs index_bench)
# fio and many small files, the short form.
kvc_test(integration integration/data_bench_test nlohmann_json::nlohmann_json)
add_dependencies(data_bench_test kvcfs)

kvc_test(integration integration/cluster_engines_test kvcfs_test_mount kvcfs_meta)
kvc_test(integration integration/cluster_files_test kvcfs_test_mount kvcfs_meta)
kvc_test(integration integration/cluster_mount_test kvcfs_test_mount kvcfs_meta)
kvc_test(integration integration/cluster_pool_test kvcfs_test_mount kvcfs_meta)
kvc_test(integration integration/serve_test kvcfs_test_mount kvcfs_tools)
