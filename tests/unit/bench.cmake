# Unit tests of bench: kvc_test(unit unit/bench/<file>_test kvcfs_bench)
kvc_test(unit unit/bench/prefix_cache_test kvcfs_bench)
