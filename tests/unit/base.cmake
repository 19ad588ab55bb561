# Unit tests of base: kvc_test(unit unit/base/<file>_test kvcfs_base)
