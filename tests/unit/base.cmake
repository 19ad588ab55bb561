# Unit tests of base: kvc_test(unit unit/base/<file>_test kvcfs_base)
foreach(file block_key config metrics read_file size)
  kvc_test(unit unit/base/${file}_test kvcfs_base)
endforeach()
