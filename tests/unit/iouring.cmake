# Unit tests of iouring: kvc_test(unit unit/iouring/<file>_test kvcfs_iouring)
