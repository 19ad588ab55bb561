# The simulator: the cluster's cores compiled once more, with the bugs that can be switched on.
set(sim_cores)
foreach(file block_holder chain_key client_probes cluster_client cluster_messages group_cache lease_table match_table metadata_shard placement
    shard_balance shard_loading shard_records)
  list(APPEND sim_cores ${CMAKE_SOURCE_DIR}/meta/${file}.cc)
endforeach()
add_executable(kvc_sim ${sim_cores} sim/kvc_sim.cc sim/model.cc sim/planted.cc sim/world.cc sim/world_clients.cc
  sim/world_faults.cc)
target_compile_definitions(kvc_sim PRIVATE KVC_SIMULATED)
target_link_libraries(kvc_sim PRIVATE kvcfs_rdma OpenSSL::Crypto fmt::fmt)
# The seeds of every day; a longer run is a command (tests/README.md).
add_test(NAME kvc_sim COMMAND kvc_sim --seeds 0..2000 --jobs 2)
add_test(NAME kvc_sim_planted COMMAND kvc_sim --all-planted)
set_tests_properties(kvc_sim kvc_sim_planted PROPERTIES LABELS sim TIMEOUT 600)
