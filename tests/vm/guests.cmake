# What runs in guests. The first makes the guest for all.
add_test(NAME vm_guest COMMAND ${CMAKE_SOURCE_DIR}/tests/vm/guest-test.sh ${CMAKE_BINARY_DIR}/vm)
set_tests_properties(vm_guest PROPERTIES LABELS vm TIMEOUT 600 SKIP_RETURN_CODE 77 RUN_SERIAL TRUE)

# The tests that the TCP transport passes, over queue pairs of one soft-RoCE device, with certificates.
kvc_vm_test(verbs_transport --certs --seconds 900 --program $<TARGET_FILE:tcp_test> --
  "rdma-devices && KVC_TEST_TRANSPORT=verbs KVC_TEST_HOST=10.77.0.1 KVC_TEST_CERTS=/certs tcp_test --gtest_filter=TcpTest.*")

# What only queue pairs have: many of them share receives, fewer than what they send; those of a node that is revoked end.
kvc_vm_test(verbs_queue_pairs --certs --seconds 900 --program $<TARGET_FILE:verbs_test> --program $<TARGET_FILE:revoked_test> --
  "rdma-devices && export KVC_TEST_TRANSPORT=verbs KVC_TEST_HOST=10.77.0.1 KVC_TEST_CERTS=/certs && verbs_test && revoked_test")

# 100,000 one-sided reads of an index and of slots that are used again under the reader; 0 wrong, and without the check some.
kvc_vm_test(one_sided_race --certs --seconds 1200 --program $<TARGET_FILE:one_sided_race_test> --
  "rdma-devices && KVC_TEST_TRANSPORT=verbs KVC_TEST_HOST=10.77.0.1 KVC_TEST_CERTS=/certs KVC_TEST_READS=100000 one_sided_race_test")

# A cluster's nodes on two devices, with etcd: matches (by calls, and READ out of owners' memory), reads, publishes and drops over queue pairs.
kvc_vm_test(verbs_cluster --certs --seconds 900 --program $<TARGET_FILE:cluster_runtime_test> --program etcd
  --program ${CMAKE_CURRENT_SOURCE_DIR}/vm/on-two-devices.sh -- on-two-devices.sh cluster_runtime_test
  --gtest_filter=*WhatOneMount*:*ADropIsSeen*:*AHolderServes*:*FirstToPublish*:*DamagedBytes*:*Namespaces*:*ManyCallers*:*MatchesAreRead*)

# Copies that a holder registers, read one-sided into the memory that asked: no call, and never other bytes.
kvc_vm_test(one_sided_copies --certs --seconds 900 --program $<TARGET_FILE:exposed_copies_test> --
  "rdma-devices && KVC_TEST_TRANSPORT=verbs KVC_TEST_HOST=10.77.0.1 KVC_TEST_CERTS=/certs exposed_copies_test")

# Two servers on two devices, with their data on the guest's NVMe device, and two mounts: replays that check every byte, one of them
# while a server is killed.
kvc_vm_test(mounted_cluster --certs --seconds 1400 --memory 2048 --disk 3072 --program $<TARGET_FILE:kvcfs> --program etcd
  --program mke2fs --program setfattr --program ${CMAKE_CURRENT_SOURCE_DIR}/vm/cluster-words.sh
  --program ${CMAKE_CURRENT_SOURCE_DIR}/vm/mounted-cluster.sh -- mounted-cluster.sh)

# What a trace's requests cost, by calls and one-sided: as many round trips, READs and bytes by the device as loopback counts.
kvc_vm_test(trace_counts --certs --seconds 900 --program $<TARGET_FILE:trace_counts_test> --
  "rdma-devices && KVC_TEST_TRANSPORT=verbs KVC_TEST_HOST=10.77.0.1 KVC_TEST_CERTS=/certs trace_counts_test")

# Two guests that only a network joins, each a host of a cluster: what one writes the other reads over queue pairs, and when one goes
# off the other has all of it.
kvc_vm_test(two_hosts --hosts 2 --cpus 1 --certs --seconds 1400 --program $<TARGET_FILE:kvcfs> --program etcd --program setfattr
  --program ${CMAKE_CURRENT_SOURCE_DIR}/vm/cluster-words.sh --program ${CMAKE_CURRENT_SOURCE_DIR}/vm/two-hosts.sh -- two-hosts.sh)
