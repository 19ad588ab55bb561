# Unit tests of tools: kvc_test(unit unit/tools/<file>_test kvcfs_tools)
