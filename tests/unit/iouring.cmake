# Unit tests of iouring: kvc_test(unit unit/iouring/<file>_test kvcfs_iouring)
kvc_test(unit unit/iouring/segment_store_test kvcfs_iouring)
kvc_test(unit unit/iouring/segment_crash_test kvcfs_iouring)
