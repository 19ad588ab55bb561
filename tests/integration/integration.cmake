# Integration tests, through a real mount: kvc_test(integration integration/<what>_test kvcfs_base)
