# Unit tests of fs: kvc_test(unit unit/fs/<file>_test kvcfs_fs)
