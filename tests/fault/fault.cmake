# Fault tests: kvc_test(fault fault/<what>_test kvcfs_base)
