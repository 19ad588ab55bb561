# Fault tests: what is left after kills, damage, full disks, failing links and wrong words.
foreach(test command_line_test crash_point_test damage_test full_disk_test kill_test lifecycle_test worker_test)
  kvc_test(fault fault/${test} kvcfs_test_mount)
endforeach()
kvc_test(fault fault/partition_test kvcfs_rdma)
kvc_test(fault fault/disk_error_test kvcfs_test_mount kvcfs::libfuse)
# A dozen processes and the times in which a cluster must heal: not under the sanitizers of .ci/run.
kvc_test(hosts fault/hosts_test kvcfs_test_mount kvcfs_tools)
kvc_test(hosts fault/failover_test kvcfs_test_mount kvcfs_tools)
