# Unit tests of tools: kvc_test(unit unit/tools/<file>_test kvcfs_tools)
foreach(file block_bytes client cluster_options command doctor metrics_server metrics_text node_config replay report synth
        trace trace_counts)
  kvc_test(unit unit/tools/${file}_test kvcfs_tools CLI11::CLI11)
endforeach()
add_dependencies(command_test kvcfs)
