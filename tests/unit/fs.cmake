# Unit tests of fs: kvc_test(unit unit/fs/<file>_test kvcfs_fs)
kvc_test(unit unit/fs/file_tree_test kvcfs_fs)
kvc_test(unit unit/fs/block_store_test kvcfs_fs)
kvc_test(unit unit/fs/resident_set_test kvcfs_fs)
