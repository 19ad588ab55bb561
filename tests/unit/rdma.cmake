# Unit tests of rdma: kvc_test(unit unit/rdma/<file>_test kvcfs_rdma)
kvc_test(unit unit/rdma/wire_test kvcfs_rdma)
kvc_test(unit unit/rdma/frame_parser_test kvcfs_rdma)
