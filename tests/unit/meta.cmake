# Unit tests of meta: kvc_test(unit unit/meta/<file>_test kvcfs_meta)
kvc_test(unit unit/meta/meta_store_test kvcfs_meta)
