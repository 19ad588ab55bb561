# What the tree as a whole promises: layers, READMEs, lengths, and that each promise has its test.
kvc_test(unit unit/tidy_test kvcfs_base)
